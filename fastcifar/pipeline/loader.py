"""Augmented uint8 batches of the training set on a device, from memory (resident) or from the file (streamed).

Both loaders give the same images in the same order, a function of (seed, epoch) alone.
"""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.data.cifar10 import IMAGE_SIZE
from fastcifar.data.folder import beton_path, load_train
from fastcifar.distributed import ALONE, World
from fastcifar.kernels.gather import gather_augmented
from fastcifar.pipeline.augment import affine_coeffs, choose_subset, draw_order, sample_augmentation

Batch = tuple[Tensor, Tensor]  # (B, 32, 32, 3) uint8 images, (B,) int64 labels, both on the loader's device
Batches = Generator[Batch]
NumpyBatches = Generator[tuple[NDArray[np.uint8], NDArray[np.int64]]]


class Loader(Protocol):
    """What training needs of a loader.

    Attributes:
        num_steps: full batches an epoch; the images beyond them are left out of it.
    """

    num_steps: int

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch (from 0). A batch stays valid after the next is taken.

        Close it, rather than drop it, to leave an epoch early.
        """
        ...


class EpochPlanner:
    """Draws an epoch's order and augmentation, once and eagerly.

    Args:
        indices: `(N,)` int64 global sample indices of the images to train on.
        global_batch_size: images a step, over all ranks; the world's size divides it.
        seed: of order and augmentation.
        padding: of the crop.
        max_angle_deg: of the rotation.
        world: whose rank takes its share of every batch.

    Attributes:
        num_steps: full batches an epoch.
        rank_batch_size: images a step on this rank.
    """

    def __init__(
        self,
        indices: Tensor,
        global_batch_size: int,
        *,
        seed: int,
        padding: int,
        max_angle_deg: float,
        world: World = ALONE,
    ) -> None:
        self.indices = indices
        self.num_steps = len(indices) // global_batch_size
        self.rank_batch_size = global_batch_size // world.size
        self._global_batch_size, self._world = global_batch_size, world
        self._seed, self._padding, self._max_angle_deg = seed, padding, max_angle_deg

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """What the epoch visits on this rank: of every batch an equal share, the batches the same for any world.

        Returns:
            `(num_steps * rank_batch_size,)` int64 positions in `indices`, and `(num_steps * rank_batch_size, 9)` int32
            coeffs for `gather_augmented`.
        """
        order = draw_order(self._seed, epoch, self.indices)[: self.num_steps * self._global_batch_size]
        order = order.view(self.num_steps, self._world.size, -1)[:, self._world.rank].flatten()
        params = sample_augmentation(
            self._seed, epoch, self.indices[order], padding=self._padding, max_angle_deg=self._max_angle_deg
        )
        return order, affine_coeffs(params)


class ResidentLoader:
    """Batches from images held on the device.

    Args:
        images: `(N, 32, 32, 3)` uint8, contiguous, on the device.
        labels: `(N,)` int64, on the device.
        planner: for the N images, on the device.
        compile: whether torch.compile makes one kernel of the gather.
    """

    def __init__(self, images: Tensor, labels: Tensor, planner: EpochPlanner, *, compile: bool = False) -> None:  # noqa: A002
        self._images, self._labels, self._planner = images, labels, planner
        self._gather = torch.compile(gather_augmented, dynamic=False) if compile else gather_augmented
        self.num_steps = planner.num_steps

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch, each augmented when it is taken."""
        order, coeffs = self._planner.plan(epoch)
        labels = self._labels[order]
        size = self._planner.rank_batch_size
        for start in range(0, len(order), size):
            batch = slice(start, start + size)
            yield self._gather(self._images, order[batch], coeffs[batch]), labels[batch]


class StreamedLoader:
    """Batches read from a .beton file by FFCV and augmented on CPU threads, while the device trains.

    Args:
        path: a file that was validated.
        positions: `(N,)` int64, which images of the file to train on.
        planner: for those N images, on the CPU.
        device: where batches go.
        num_workers: FFCV's threads.
    """

    def __init__(
        self, path: Path, positions: Tensor, planner: EpochPlanner, device: torch.device, num_workers: int
    ) -> None:
        from fastcifar.pipeline.ffcv_reader import FfcvStream  # FFCV takes seconds to import

        self._positions, self._planner, self._device = positions, planner, device
        self._stream = FfcvStream(path, planner.rank_batch_size, num_workers)
        self.num_steps = planner.num_steps

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch. Leaving early ends FFCV's threads too."""
        order, coeffs = self._planner.plan(epoch)
        with contextlib.closing(self._stream.epoch(self._positions[order].numpy(), coeffs.numpy())) as batches:
            if self._device.type == "cuda":
                yield from self._to_cuda(batches)
            else:
                for images, labels in batches:
                    yield torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())

    def _to_cuda(self, batches: NumpyBatches) -> Batches:
        """Copy batches to the device by way of pinned memory of our own, because FFCV reuses its buffers.

        A pinned slot is reused only once the device has fetched it; with two of them the host prepares a batch while
        the device is still busy with the one before.
        """
        size = self._planner.rank_batch_size
        slots = [
            (
                torch.empty((size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, pin_memory=True),
                torch.empty(size, dtype=torch.int64, pin_memory=True),
                torch.cuda.Event(),
            )
            for _ in range(2)
        ]
        stream = torch.cuda.current_stream(self._device)
        for step, (images, labels) in enumerate(batches):
            pinned_images, pinned_labels, fetched = slots[step % len(slots)]
            fetched.synchronize()
            pinned_images.copy_(torch.from_numpy(images))
            pinned_labels.copy_(torch.from_numpy(labels))
            batch = (
                pinned_images.to(self._device, non_blocking=True),
                pinned_labels.to(self._device, non_blocking=True),
            )
            fetched.record(stream)
            yield batch


def build_loader(
    kind: str,
    data_dir: Path,
    device: torch.device,
    *,
    num_images: int,
    global_batch_size: int,
    seed: int,
    padding: int,
    max_angle_deg: float,
    compile: bool,  # noqa: A002
    num_workers: int,
    world: World,
) -> Loader:
    """Read and validate the training split, and build a loader of it.

    Args:
        kind: "resident" or "streamed".
        data_dir: a folder that `prepare` filled.
        device: where batches go.
        num_images: of the training set, the first of a fixed permutation.
        global_batch_size: see `EpochPlanner`.
        seed: see `EpochPlanner`.
        padding: see `EpochPlanner`.
        max_angle_deg: see `EpochPlanner`.
        compile: see `ResidentLoader`.
        num_workers: see `StreamedLoader`.
        world: see `EpochPlanner`.

    Raises:
        FastcifarError: the data is missing or damaged.
    """
    split = load_train(data_dir)
    indices = torch.from_numpy(split.indices)
    chosen = choose_subset(indices, num_images)
    is_streamed = kind == "streamed"
    planner = EpochPlanner(
        indices[chosen].to("cpu" if is_streamed else device),
        global_batch_size,
        seed=seed,
        padding=padding,
        max_angle_deg=max_angle_deg,
        world=world,
    )
    if is_streamed:
        return StreamedLoader(beton_path(data_dir, "train"), chosen, planner, device, num_workers)
    images = torch.from_numpy(split.images)[chosen].to(device)
    labels = torch.from_numpy(split.labels)[chosen].long().to(device)
    return ResidentLoader(images, labels, planner, compile=compile)
