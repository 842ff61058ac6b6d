"""Gradients averaged over the ranks of a world, by one all-reduce per step that a CUDA graph can contain."""

import torch
from torch import Tensor

from fastcifar.distributed import World


class GradientAverage:
    """Averages gradients in one flat float tensor.

    Args:
        masters: the model's parameters; averages have their shapes, types and memory formats.
        world: its ranks each have their own gradients, and all of them call this.
    """

    def __init__(self, masters: list[Tensor], world: World) -> None:
        self._world = world
        self._flat = masters[0].new_zeros(sum(master.numel() for master in masters))
        parts = self._flat.split([master.numel() for master in masters])
        self._parts = [
            part.as_strided(master.shape, master.stride(), part.storage_offset())
            for part, master in zip(parts, masters, strict=True)
        ]

    def __call__(self, gradients: list[Tensor]) -> list[Tensor]:
        """The ranks' mean of each gradient, in tensors that the next call overwrites; the same bits on every rank."""
        torch._foreach_copy_(self._parts, gradients)
        self._flat /= self._world.size
        self._world.all_reduce_sum(self._flat)
        return self._parts
