"""Crop, mirror and rotation as one integer gather, and the normalisation, in plain torch."""

import torch
from torch import Tensor

from fastcifar.data.cifar10 import IMAGE_SIZE


def gather_augmented(images: Tensor, positions: Tensor, coeffs: Tensor) -> Tensor:
    """Pick images, and crop, mirror and rotate them, in one gather of pixels.

    Args:
        images: `(N, 32, 32, 3)` uint8, contiguous.
        positions: `(B,)` int64, which images to pick.
        coeffs: `(B, 9)` int32 from `affine_coeffs`, for those images.

    Returns:
        `(B, 32, 32, 3)` uint8.
    """
    y = torch.arange(IMAGE_SIZE, dtype=torch.int32, device=images.device).view(1, -1, 1)
    x = y.view(1, 1, -1)
    a0, a1, a2, a3, a4, a5, top, left, mirror = coeffs.view(-1, 9, 1, 1).unbind(1)
    rotated_column = (a2 + a1 * y + a0 * x) >> 16
    rotated_row = (a5 + a4 * y + a3 * x) >> 16
    row = rotated_row + top
    column = (rotated_column ^ mirror) + left
    # A number outside 0..31 has a bit set above the lowest five, even if it is negative: four range checks at once.
    is_black = (rotated_column | rotated_row | row | column) & ~(IMAGE_SIZE - 1) != 0
    source = positions.view(-1, 1, 1) * IMAGE_SIZE**2 + (row * IMAGE_SIZE + column).masked_fill(is_black, 0)
    pixels = images.view(-1, 3)[source.view(-1)].view(*source.shape, 3)
    return pixels.masked_fill(is_black.unsqueeze(-1), 0)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels to [0, 1], then subtract the mean and divide by the standard deviation.

    The operations and their order are those of torchvision's `ToTensor` and `Normalize`, so the bits are equal.

    Args:
        images: `(B, 32, 32, 3)` uint8.
        mean: `(3,)` float32, of each channel, on the scale of [0, 1], on the images' device.
        std: `(3,)` float32, of each channel, on the same scale and device.

    Returns:
        `(B, 3, 32, 32)` float32 in channels-last memory format.
    """
    return ((images.to(torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
