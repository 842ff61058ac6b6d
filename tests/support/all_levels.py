"""An epoch of every angle level, for comparisons of a compiled gather with the plain one."""

from dataclasses import replace

import torch
from torch import Tensor

from fastcifar.pipeline.augment import NUM_LEVELS, affine_coeffs, sample_augmentation
from fastcifar.pipeline.loader import EpochPlanner
from fastcifar.recipes import get_recipe


class AllLevels(EpochPlanner):
    """An epoch that rotates by every angle level once, each with its own crop and flip.

    Args:
        num_images: how many images there are; they take turns.
        batch_size: images per step.
        device: where the plan is made.
    """

    def __init__(self, num_images: int, batch_size: int, device: torch.device) -> None:
        recipe = replace(get_recipe("sgd92"), global_batch_size=batch_size)
        super().__init__(torch.arange(NUM_LEVELS, device=device), recipe)
        self._num_images = num_images

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        params = replace(sample_augmentation(42, epoch, self.indices), angle_level=self.indices)
        return self.indices % self._num_images, affine_coeffs(params)
