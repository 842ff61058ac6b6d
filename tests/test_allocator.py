import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from fastcifar.training.allocator import freed_memory_kept

_BLOCK_BYTES = 48 << 20  # above glibc's own threshold, whatever it has learnt
_PAGE_BYTES = resource.getpagesize()


def use_a_block() -> None:
    torch.zeros(_BLOCK_BYTES, dtype=torch.uint8).add_(1)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def check() -> None:
    before = resident_bytes()
    with freed_memory_kept("cpu"):
        for _ in range(4):  # until it has settled where in the heap they go
            use_a_block()
        assert resident_bytes() > before + _BLOCK_BYTES / 2
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            use_a_block()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        assert faults <= 2 * _BLOCK_BYTES / _PAGE_BYTES  # for ten blocks
    assert resident_bytes() < before + _BLOCK_BYTES / 2


def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    """In a process of its own: another's heap may have room enough already."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check()
