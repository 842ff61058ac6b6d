"""Random crop, flip and rotation: the draws for an image, and the integers that the gather needs.

An image's draws are a pure function of (seed, epoch, global sample index), so they do not depend on batch size, worker,
device, rank or interruptions. Their result is bit-identical to torchvision's `pad`, `crop`, `hflip` and `rotate`
(nearest, black fill) on PIL images.

Global sample indices: training images 0..49,999; test images 50,000 + position in the official test batch.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcifar.data.cifar10 import IMAGE_SIZE
from fastcifar.data.hashing import hash32
from fastcifar.kernels.gather import gather_augmented

NUM_LEVELS = 1 << 16  # angles are drawn from this many equidistant levels

# The streams of draws; a stream's number is the first word of its hash key.
_ORDER, _DY, _DX, _FLIP, _ANGLE, _SUBSET = range(6)
_SUBSET_SEED = 42


@dataclass(frozen=True)
class AugmentParams:
    """The draws for a batch of B images; every tensor is `(B,)` on one device.

    Attributes:
        dy: int64 first row of the crop in the padded image, 0..2 * padding.
        dx: int64 first column of the crop in the padded image, 0..2 * padding.
        flip: bool, mirrored left to right after the crop.
        angle_level: int64 level of the rotation angle, 0..65,535; the rotation comes last.
        padding: black pixels added on each side before the crop.
        max_angle_deg: the angles lie in [-max_angle_deg, max_angle_deg).
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor
    angle_level: Tensor
    padding: int
    max_angle_deg: float

    @property
    def angle_deg(self) -> Tensor:
        """Counter-clockwise rotation in degrees, `(B,)` float32; exact for a maximum of 15."""
        angle_deg: Tensor = level_to_deg(self.angle_level.to(torch.float64), self.max_angle_deg)
        return angle_deg.to(torch.float32)


def level_to_deg(level: Any, max_angle_deg: float) -> Any:
    """The angle in degrees of an angle level: level 0 is -max, level 32,768 is 0, level 65,535 just below max."""
    return level * max_angle_deg / (NUM_LEVELS // 2) - max_angle_deg


def draw_order(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """The order in which an epoch visits its images.

    Args:
        seed: the run's seed, in [0, 2**32).
        epoch: the epoch, from 0.
        indices: `(N,)` int64 global sample indices.

    Returns:
        `(N,)` int64, a permutation of 0..N-1: the positions in `indices` in the order of the visit. Two images that
        are in two index sets are visited in the same relative order in both.
    """
    return torch.argsort(hash32(indices, _ORDER, seed, epoch), stable=True)


def choose_subset(indices: Tensor, num_images: int) -> Tensor:
    """Choose images: the first of a fixed permutation, so that a smaller choice is part of a larger one.

    Args:
        indices: `(N,)` int64 global sample indices.
        num_images: how many to choose, at most N.

    Returns:
        `(num_images,)` int64 ascending positions in `indices`.
    """
    permutation = torch.argsort(hash32(indices, _SUBSET, _SUBSET_SEED), stable=True)
    return permutation[:num_images].sort().values


def sample_augmentation(
    seed: int, epoch: int, indices: Tensor, *, padding: int = 4, max_angle_deg: float = 15
) -> AugmentParams:
    """Draw crop, flip and rotation for images.

    Args:
        seed: the run's seed, in [0, 2**32).
        epoch: the epoch, from 0.
        indices: `(B,)` int64 global sample indices, in [0, 2**32).
        padding: black pixels added on each side before the crop.
        max_angle_deg: bound of the rotation angle.

    Returns:
        The draws, on the device of `indices`. Equal arguments give equal draws, however the indices are split.

    Raises:
        ValueError: seed or epoch is outside [0, 2**32).
    """

    def draw(stream: int) -> Tensor:
        words: Tensor = hash32(indices, stream, seed, epoch)
        return words

    num_offsets = 2 * padding + 1
    return AugmentParams(
        dy=(draw(_DY) * num_offsets) >> 32,
        dx=(draw(_DX) * num_offsets) >> 32,
        flip=draw(_FLIP) >= 1 << 31,
        angle_level=draw(_ANGLE) >> 16,
        padding=padding,
        max_angle_deg=max_angle_deg,
    )


def affine_coeffs(params: AugmentParams) -> Tensor:
    """The draws as integers for the gather: one row of nine per image.

    Columns 0..5 are the rotation's coefficients a0..a5 (16.16 fixed point: the source column of output pixel (y, x)
    is `(a2 + a1 * y + a0 * x) >> 16`, its source row `(a5 + a4 * y + a3 * x) >> 16`); 6 and 7 are the crop's row and
    column offset minus the padding; 8 is 31 for a mirrored image, otherwise 0 (`column ^ 31` is `31 - column`).

    Returns:
        `(B, 9)` int32 on the device of the draws.
    """
    table = _rotation_table_on(params.max_angle_deg, params.dy.device)
    crop_and_flip = torch.stack(
        (params.dy - params.padding, params.dx - params.padding, params.flip * (IMAGE_SIZE - 1)), dim=1
    )
    return torch.cat((table[params.angle_level], crop_and_flip.to(torch.int32)), dim=1)


@functools.cache
def _rotation_table_on(max_angle_deg: float, device: torch.device) -> Tensor:
    """`_rotation_table`, copied to a device once: 1.5 MB."""
    return _rotation_table(max_angle_deg).to(device)


@functools.cache
def _rotation_table(max_angle_deg: float) -> Tensor:
    """The coefficients a0..a5 of every angle level, `(65536, 6)` int32.

    They are computed with the expressions of Pillow (`Image.rotate`, then `affine_fixed` in its Geometry.c), in
    Python's floats, so that they equal Pillow's to the last bit.
    """

    def fixed(value: float) -> int:
        return math.floor(value * 65536 + 0.5)

    centre = IMAGE_SIZE / 2
    rows = []
    for level in range(NUM_LEVELS):
        angle = -math.radians(level_to_deg(float(level), max_angle_deg) % 360.0)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        a, b, d, e = cos, sin, round(-math.sin(angle), 15), cos
        c = a * -centre + b * -centre + 0.0 + centre
        f = d * -centre + e * -centre + 0.0 + centre
        # Pillow samples at pixel centres: the half pixel is part of the constant terms.
        c, f = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5
        rows.append([fixed(value) for value in (a, b, c, d, e, f)])
    return torch.tensor(rows, dtype=torch.int32)


def crop_flip_rotate(images: Tensor, params: AugmentParams) -> Tensor:
    """Crop, mirror and rotate images, each by its draws.

    Bit-identical to torchvision's `pad(padding)`, `crop(dy, dx)`, `hflip` and `rotate(angle_deg)` on PIL images
    (nearest neighbour, black fill).

    Args:
        images: `(B, 32, 32, 3)` uint8.
        params: the draws for those B images, on the same device.

    Returns:
        `(B, 32, 32, 3)` uint8.
    """
    positions = torch.arange(len(images), device=images.device)
    return gather_augmented(images.contiguous(), positions, affine_coeffs(params))
