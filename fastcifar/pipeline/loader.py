"""Augmented uint8 batches of the training set on a device, from memory (resident) or from the file (streamed).

Both loaders give the same images in the same order, a function of (seed, epoch) alone. A batch is read by the number of
its step, which is a tensor on the device, from tensors with fixed addresses, so a CUDA graph can contain the read.
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
from fastcifar.recipes import Recipe

Batch = tuple[Tensor, Tensor]  # (B, 32, 32, 3) uint8 images, (B,) int64 labels, both on the loader's device
Steps = Generator[int]
NumpyBatches = Generator[tuple[NDArray[np.uint8], NDArray[np.int64]]]

_NUM_SLOTS = 2


class Loader(Protocol):
    """The interface that training needs from a loader.

    Attributes:
        num_steps: full batches per epoch; the remaining images are left out.
        reads_ahead: whether `read` can be asked for any step of an epoch as soon as the epoch has begun.
    """

    num_steps: int
    reads_ahead: bool

    def epoch(self, epoch: int) -> Steps:
        """Make the batches of an epoch (from 0) available to `read`, one after the other; yields the step's number.

        All reads of a batch must be issued before the next step is taken. To leave an epoch early, close the iterator.
        """
        ...

    def read(self, step: Tensor) -> Batch:
        """The batch of a step of this epoch, augmented; on CUDA nothing waits for the device.

        Args:
            step: `(1,)` int64 on the loader's device, from 0.
        """
        ...


class EpochPlanner:
    """Draws an epoch's order and augmentation, once and eagerly.

    Args:
        indices: `(N,)` int64 global sample indices of the images to train on.
        recipe: its seed, batch size, padding and angle are used; the world's size divides the batch size.
        world: its rank takes its share of every batch.

    Attributes:
        num_steps: full batches per epoch.
        rank_batch_size: images per step on this rank.
    """

    def __init__(self, indices: Tensor, recipe: Recipe, world: World = ALONE) -> None:
        self.indices = indices
        self.num_steps = len(indices) // recipe.global_batch_size
        self.rank_batch_size = recipe.global_batch_size // world.size
        self._recipe, self._world = recipe, world

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The images that this rank visits in an epoch: an equal share of every batch; any world has the same batches.

        Returns:
            `(num_steps * rank_batch_size,)` int64 positions in `indices`, and `(num_steps * rank_batch_size, 9)` int32
            coeffs for `gather_augmented`.
        """
        recipe = self._recipe
        order = draw_order(recipe.seed, epoch, self.indices)[: self.num_steps * recipe.global_batch_size]
        order = order.view(self.num_steps, self._world.size, -1)[:, self._world.rank].flatten()
        params = sample_augmentation(
            recipe.seed, epoch, self.indices[order], padding=recipe.padding, max_angle_deg=recipe.max_angle_deg
        )
        return order, affine_coeffs(params)


class ResidentLoader:
    """Batches from images held on the device.

    Args:
        images: `(N, 32, 32, 3)` uint8, contiguous, on the device.
        labels: `(N,)` int64, on the device.
        planner: for the N images, on the device.
    """

    reads_ahead = True

    def __init__(self, images: Tensor, labels: Tensor, planner: EpochPlanner) -> None:
        self._images, self._labels, self._planner = images, labels, planner
        self.num_steps = planner.num_steps
        # The images of the epoch, one row per step; overwritten at the next epoch's start.
        shape = (planner.num_steps, planner.rank_batch_size)
        self._order = torch.zeros(shape, dtype=torch.int64, device=images.device)
        self._coeffs = torch.zeros((*shape, 9), dtype=torch.int32, device=images.device)
        self._epoch_labels = torch.zeros(shape, dtype=torch.int64, device=images.device)

    def epoch(self, epoch: int) -> Steps:
        """The steps of an epoch, all of which can be read from the start."""
        order, coeffs = self._planner.plan(epoch)
        self._order.copy_(order.view_as(self._order))
        self._coeffs.copy_(coeffs.view_as(self._coeffs))
        self._epoch_labels.copy_(self._labels[order].view_as(self._order))
        yield from range(self.num_steps)

    def read(self, step: Tensor) -> Batch:
        """The batch of a step, augmented now."""
        order, coeffs, labels = (
            rows.index_select(0, step)[0] for rows in (self._order, self._coeffs, self._epoch_labels)
        )
        return gather_augmented(self._images, order, coeffs), labels


class StreamedLoader:
    """Batches read from a .beton file by FFCV and augmented on CPU threads, while the device trains.

    Two batches are on the device: one for the current step, one that is being copied.

    Args:
        path: the validated file of the training set, where an image's position is its global sample index.
        planner: on the CPU.
        device: the device of the batches.
        num_workers: FFCV's threads.
    """

    reads_ahead = False

    def __init__(self, path: Path, planner: EpochPlanner, device: torch.device, num_workers: int) -> None:
        from fastcifar.pipeline.ffcv_reader import FfcvStream  # FFCV takes seconds to import

        self._planner, self._device = planner, device
        self._stream = FfcvStream(path, planner.rank_batch_size, num_workers)
        self.num_steps = planner.num_steps
        shape = (_NUM_SLOTS, planner.rank_batch_size)
        self._images = torch.zeros((*shape, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=device)
        self._labels = torch.zeros(shape, dtype=torch.int64, device=device)

    def epoch(self, epoch: int) -> Steps:
        """The steps of an epoch. Closing it early also ends FFCV's threads."""
        order, coeffs = self._planner.plan(epoch)
        with contextlib.closing(self._stream.epoch(self._planner.indices[order].numpy(), coeffs.numpy())) as batches:
            if self._device.type == "cuda":
                yield from self._copy_to_cuda(batches)
            else:
                for step, (images, labels) in enumerate(batches):
                    self._images[step % _NUM_SLOTS].copy_(torch.from_numpy(images))
                    self._labels[step % _NUM_SLOTS].copy_(torch.from_numpy(labels))
                    yield step

    def read(self, step: Tensor) -> Batch:
        """The batch of the last step taken; on CUDA the work must be issued before the next step is taken."""
        images, labels = (slots.index_select(0, step % _NUM_SLOTS)[0] for slots in (self._images, self._labels))
        return images, labels

    def _copy_to_cuda(self, batches: NumpyBatches) -> Steps:
        """Copy batches to the device through separate pinned memory, because FFCV reuses its buffers.

        The copies run on their own stream. A pinned slot is refilled once it was copied, a slot on the device once the
        step that reads it is finished.
        """
        slots = list(zip(self._images, self._labels, strict=True))
        pinned = [[torch.empty_like(values, device="cpu", pin_memory=True) for values in slot] for slot in slots]
        copied, trained = ([torch.cuda.Event() for _ in range(_NUM_SLOTS)] for _ in range(2))
        training_stream, copy_stream = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        copy_stream.wait_stream(training_stream)  # the previous epoch may still read the slots
        for step, batch in enumerate(batches):
            slot = step % _NUM_SLOTS
            copied[slot].synchronize()
            for staging, values in zip(pinned[slot], batch, strict=True):
                staging.copy_(torch.from_numpy(values))
            with torch.cuda.stream(copy_stream):
                copy_stream.wait_event(trained[slot])
                for target, staging in zip(slots[slot], pinned[slot], strict=True):
                    target.copy_(staging, non_blocking=True)
                copied[slot].record(copy_stream)
            training_stream.wait_event(copied[slot])
            yield step
            trained[slot].record(training_stream)


class FixedBatch:
    """The same batch at every step, to time or examine a step.

    Args:
        images: `(B, 32, 32, 3)` uint8, on the device.
        labels: `(B,)` int64, on the device.
    """

    num_steps, reads_ahead = 1, True

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._batch = images, labels

    def epoch(self, epoch: int) -> Steps:
        """The only step."""
        yield 0

    def read(self, step: Tensor) -> Batch:
        """The batch."""
        return self._batch


def build_loader(
    kind: str,
    data_dir: Path,
    device: torch.device,
    recipe: Recipe,
    *,
    num_images: int,
    num_workers: int,
    world: World,
) -> Loader:
    """Read and validate the training split, and build a loader for it.

    Args:
        kind: "resident" or "streamed".
        data_dir: a folder that `prepare` filled.
        device: the device of the batches.
        recipe: see `EpochPlanner`.
        num_images: the number of training images, the first of a fixed permutation.
        num_workers: see `StreamedLoader`.
        world: see `EpochPlanner`.

    Raises:
        FastcifarError: the data is missing or damaged.
    """
    split = load_train(data_dir)
    chosen = choose_subset(torch.from_numpy(split.indices), num_images)  # these are the global indices themselves
    if kind == "streamed":
        planner = EpochPlanner(chosen, recipe, world)
        return StreamedLoader(beton_path(data_dir, "train"), planner, device, num_workers)
    planner = EpochPlanner(chosen.to(device), recipe, world)
    images = torch.from_numpy(split.images)[chosen].to(device)
    labels = torch.from_numpy(split.labels)[chosen].long().to(device)
    return ResidentLoader(images, labels, planner)
