"""The device of a run: its choice, whether bf16 is fast on it, and torch's process-wide settings for it."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Literal

import torch

from fastcifar.distributed import ALONE, World
from fastcifar.errors import ArgumentError, FastcifarError, counted
from fastcifar.machine import cpu_flags
from fastcifar.training.allocator import freed_memory_kept

Precision = Literal["bf16", "fp32"]


def resolve_device(name: str, world: World = ALONE) -> torch.device:
    """The device of that name. "auto" means CUDA if there is one; each process of a machine gets its own device.

    Raises:
        FastcifarError: there is no such device, or the name is that of one device for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise ArgumentError("device", f"must be auto, cpu, cuda or cuda:<index>, not {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    if match[1] is not None and world.size > 1:
        raise ArgumentError("device", f"{name} is one device for {world.size} processes: give cuda")
    index, num_devices = int(match[1] or world.local_rank), torch.cuda.device_count()
    if index >= num_devices:
        wanted = repr(name) if world.size == 1 else f"for local rank {index}"
        raise ArgumentError("device", f"{wanted} does not exist: torch sees {counted(num_devices, 'CUDA device')}")
    return torch.device("cuda", index)


def is_bf16_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 itself: from Ampere on, and on x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):  # ATEN_CPU_CAPABILITY can forbid AVX-512
        return False
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


def choose_precision(device: torch.device) -> Precision:
    """The precision for a device: bf16 if its hardware is fast at it, otherwise fp32."""
    return "bf16" if is_bf16_fast(device) else "fp32"


def use_fast_kernels(device: torch.device) -> None:
    """Let CUDA libraries measure their algorithms and round float32 factors to TF32; nothing changes on a CPU."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every training batch has the same shape
        # As convolutions in float32 do by default; torch.compile warns where the two differ.
        torch.set_float32_matmul_precision("high")


@contextlib.contextmanager
def configured_device(name: str, *, description: str, num_threads: int, deterministic: bool) -> Iterator[None]:
    """Set up torch for a run on a device, and restore its former settings afterwards.

    Args:
        name: "cpu" or "cuda:<index>".
        description: the processor's name, for error messages.
        num_threads: torch's threads on the CPU.
        deterministic: whether to use only algorithms that give the same bits each time.

    Raises:
        FastcifarError: the device has too little memory for the work in this context.
    """
    device, former_precision = torch.device(name), torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing here reads uninitialized memory
    if device.type == "cuda":
        torch.cuda.set_device(device)
        use_fast_kernels(device)
        torch.backends.cudnn.benchmark = not deterministic
    try:
        with freed_memory_kept(device.type):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FastcifarError(
            f"{description} has too little memory free: try a smaller batch size, or the streamed loader"
        ) from error
    finally:
        torch.set_float32_matmul_precision(former_precision)
        torch.use_deterministic_algorithms(False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it reports too little memory; torch's CPU allocator has no separate exception type."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
