"""Keeps memory that a training step frees for the next step.

glibc returns large blocks to the kernel as soon as they are freed. So every step on a CPU maps its activations again,
and the kernel clears them page by page: 60,000 page faults per step at batch size 128.
"""

import contextlib
import ctypes
from collections.abc import Iterator

# Parameters of glibc's mallopt(3), from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The values that glibc's dynamic thresholds reach in a process that frees large blocks; glibc cannot be asked for them.
_USUAL_MMAP_THRESHOLD, _USUAL_TRIM_THRESHOLD = 32 << 20, 64 << 20
_KEPT_MMAP_THRESHOLD, _NEVER = 1 << 30, -1


@contextlib.contextmanager
def freed_memory_kept(device_type: str) -> Iterator[None]:
    """Keep freed memory in the process within this context, if the device is "cpu" and the allocator is glibc's."""
    libc = ctypes.CDLL(None)
    if device_type != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    if not libc.mallopt(_MMAP_THRESHOLD, _KEPT_MMAP_THRESHOLD):  # older versions refuse more than this
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
        libc.malloc_trim(0)
