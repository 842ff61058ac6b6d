"""What this machine has for training, and what to do about what it lacks."""

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.machine import describe_cpu

_MIN_TORCH = (2, 11)
_MIN_FREE_GIB = 3  # a training at batch size 128 takes half of it on a CPU


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: of it.
        is_sound: False where something should be done.
        found: what there is.
        remedy: what to do; empty where all is well.
    """

    name: str
    is_sound: bool
    found: str
    remedy: str = ""


def examine(data_dir: Path) -> Iterator[Check]:
    """Look at everything a training needs; nothing is changed.

    Args:
        data_dir: where the data is, or is to be.

    Yields:
        Each check as it is done; some take seconds.
    """
    yield _check_python()
    yield _check_torch()
    yield _check_device()
    yield _check_compiler()
    yield _check_ffcv()
    yield _check_cpus()
    yield _check_memory()
    yield _check_data(data_dir)


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use 3.11 on")


def _check_torch() -> Check:
    import torch

    is_sound = tuple(map(int, torch.__version__.split(".")[:2])) >= _MIN_TORCH
    return Check("torch", is_sound, torch.__version__, "" if is_sound else "pip install 'torch>=2.11' torchvision")


def _check_device() -> Check:
    import torch

    from fastcifar.training.device import is_bf16_fast, resolve_device

    device = resolve_device("auto")
    precision = "bf16" if is_bf16_fast(device) else "fp32, bf16 is slow here"
    if device.type == "cuda":
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        found = f"{torch.cuda.get_device_name(device)}, {memory_gib:.0f} GiB, {precision}"
        return Check("device", True, found)
    if torch.version.cuda is not None and shutil.which("nvidia-smi"):
        return Check("device", False, f"a GPU that torch does not see; CPU, {precision}", "repair the NVIDIA driver")
    return Check("device", True, f"CPU, {precision}; no CUDA device, so the full recipes take hours")


def _check_compiler() -> Check:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return Check("compiler", True, path)
    return Check("compiler", False, "none for C++, which torch.compile needs", "apt install g++, or give --no-compile")


def _check_ffcv() -> Check:
    from fastcifar.data.beton import ffcv_side_effects_undone

    try:
        with ffcv_side_effects_undone():
            importlib.import_module("ffcv")
    except Exception as error:  # a missing library makes the import raise many types
        reason = " ".join(str(error).split())[:120]
        return Check(
            "FFCV",
            False,
            f"cannot be imported ({reason})",
            "apt install libturbojpeg0-dev libopencv-imgproc-dev, then bash tools/bootstrap.sh",
        )
    return Check("FFCV", True, "imports")


def _check_cpus() -> Check:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count()
    return Check("CPU", True, f"{describe_cpu()}, {usable} of {present} CPUs usable here")


def _check_memory() -> Check:
    # What the page cache would give back counts as free.
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    free_gib = int(fields["MemAvailable"].split()[0]) / 2**20
    is_sound = free_gib >= _MIN_FREE_GIB
    remedy = "" if is_sound else f"free {_MIN_FREE_GIB} GiB, or train with a smaller --batch-size"
    return Check("memory", is_sound, f"{free_gib:.1f} GiB free", remedy)


def _check_data(data_dir: Path) -> Check:
    from fastcifar.data.beton import remedy
    from fastcifar.data.folder import is_prepared, verify_data

    command = f"fastcifar prepare --out {shlex.quote(str(data_dir))}"
    if not is_prepared(data_dir):
        return Check("data", False, f"{data_dir} holds none", f"{command} (`fastcifar train` does it by itself)")
    try:
        verify_data(data_dir)
    except FastcifarError as error:
        return Check("data", False, str(error).removesuffix(f": {remedy(data_dir)}"), remedy(data_dir))
    return Check("data", True, f"{data_dir} is prepared and sound")
