"""The same gather as `gather.gather_augmented`, compiled by numba for the CPU threads of the streamed loader.

Importing this module compiles the kernel (about two seconds), or loads it from numba's cache if there is one.
"""

import functools
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar10 import IMAGE_SIZE


def _gather(images: Any, coeffs: Any, out: Any) -> None:
    for image in numba.prange(len(images)):
        a0, a1, a2, a3, a4, a5, top, left, mirror = coeffs[image]
        for y in range(IMAGE_SIZE):
            for x in range(IMAGE_SIZE):
                rotated_column = (a2 + a1 * y + a0 * x) >> 16
                rotated_row = (a5 + a4 * y + a3 * x) >> 16
                row = rotated_row + top
                column = (rotated_column ^ mirror) + left
                if (rotated_column | rotated_row | row | column) & ~(IMAGE_SIZE - 1):
                    out[image, y, x, 0] = out[image, y, x, 1] = out[image, y, x, 2] = 0
                else:
                    for channel in range(3):
                        out[image, y, x, channel] = images[image, row, column, channel]


_compile = functools.partial(
    numba.njit, "void(uint8[:, :, :, ::1], int32[:, ::1], uint8[:, :, :, ::1])", parallel=True, nogil=True
)
try:
    _kernel = _compile(cache=True)(_gather)
    IS_CACHED = True
except Exception:  # no cache folder can be written, the disk is full, or the cache is damaged
    _kernel = _compile()(_gather)
    IS_CACHED = False


def augment_into(out: NDArray[np.uint8], images: NDArray[np.uint8], coeffs: NDArray[np.int32]) -> None:
    """Crop, mirror and rotate images into a buffer.

    Args:
        out: `(B, 32, 32, 3)` uint8, contiguous; overwritten.
        images: `(B, 32, 32, 3)` uint8, contiguous.
        coeffs: `(B, 9)` int32 from `augment.affine_coeffs`, contiguous.
    """
    _kernel(images, coeffs, out)
