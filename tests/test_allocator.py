import ctypes
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from fastcifar.training.allocator import freed_memory_kept

_BLOCK_BYTES = 24 << 20  # below the highest threshold that older versions of glibc accept
_PAGE_BYTES = resource.getpagesize()


def use_a_block() -> None:
    torch.zeros(_BLOCK_BYTES, dtype=torch.uint8).add_(1)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def count_faults() -> int:
    """How often the kernel had to find pages for a block: fewer times with huge pages."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use_a_block()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def check() -> None:
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: blocks of this size are mapped from now on
    before = resident_bytes()
    mapped = min(count_faults() for _ in range(3))
    assert mapped > 0
    with freed_memory_kept("cpu"):
        # The first blocks are mapped: small pieces in the heap must first find their places.
        assert statistics.median(count_faults() for _ in range(40)) < mapped / 2
        assert resident_bytes() > before + _BLOCK_BYTES / 2
    assert resident_bytes() < before + _BLOCK_BYTES / 2


def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    """In a separate process, because the heap of this one may already have enough room."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check()
