"""Checks what training needs on this machine, and says how to fix problems."""

import importlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.machine import count_cpus, describe_cpu, free_memory

_MIN_TORCH = (2, 11)
_MIN_FREE_GIB = 3  # a training at batch size 128 takes half of it on a CPU
_REMEDIES = {
    "torch": "install torch and torchvision again: bash tools/bootstrap.sh, or pip install --force-reinstall",
    "FFCV": "apt install libturbojpeg0-dev libopencv-imgproc-dev, then bash tools/bootstrap.sh",
    "matplotlib": "training needs it for charts only: pip install --force-reinstall matplotlib",
    "caches": "set TMPDIR to a folder that can be written",
    "memory": "make sure that 3 GiB are free",
}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the name of the check.
        is_sound: False if something should be done.
        found: what was found.
        remedy: what to do; empty if nothing is wrong.
    """

    name: str
    is_sound: bool
    found: str
    remedy: str = ""


def examine(data_dir: Path) -> Iterator[Check]:
    """Check everything that training needs; this changes only the cache of compiled kernels.

    Args:
        data_dir: the data folder, which may not exist yet.

    Yields:
        Each check as it is done; some take seconds.
    """
    checks: dict[str, Callable[[], Check]] = {
        "Python": _check_python,
        "torch": _check_torch,
        "device": _check_device,
        "compiler": _check_compiler,
        "convolution": _check_convolution,
        "FFCV": _check_ffcv,
        "matplotlib": _check_matplotlib,
        "caches": _check_caches,
        "CPU": _check_cpus,
        "memory": _check_memory,
        "data": lambda: _check_data(data_dir),
    }
    first_with: dict[str, str] = {}
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # a package with a missing library may raise anything while it is imported
            reason = _reason(error)
            remedy = f"see {first_with[reason]}" if reason in first_with else _REMEDIES.get(name, "see the other lines")
            first_with.setdefault(reason, name)
            yield Check(name, False, f"cannot be used ({reason})", remedy)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use 3.11 or later"
    )


def _check_torch() -> Check:
    import torch
    import torchvision  # noqa: F401 (it has the network; its compiled part can fail although torch works)

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
    from fastcifar.machine import find_compiler

    if command := find_compiler():
        return Check("compiler", True, shlex.join(command))
    missing = "none for C++, which torch.compile and fast convolutions on a CPU need"
    return Check("compiler", False, missing, "apt install g++")


def _check_convolution() -> Check:
    from fastcifar.kernels.winograd import why_unavailable
    from fastcifar.training.convolution import TORCH, choose_convolution
    from fastcifar.training.device import is_bf16_fast, resolve_device

    device = resolve_device("auto")
    precision = "bf16" if is_bf16_fast(device) else "fp32"
    convolution = choose_convolution("auto", device, precision)
    if device.type != "cpu":
        return Check("convolution", True, "torch's own: cuDNN's")
    if convolution == TORCH:
        return Check("convolution", True, f"torch's own: no others were measured in {precision} on such a CPU")
    if reason := why_unavailable():
        return Check("convolution", True, f"torch's own, which are slower: {reason}")
    return Check("convolution", True, f"Winograd's in {precision} for {convolution} (channels@size:passes)")


def _check_ffcv() -> Check:
    from fastcifar.data.beton import ffcv_side_effects_undone

    with ffcv_side_effects_undone():
        importlib.import_module("ffcv")
    return Check("FFCV", True, "imports")


def _check_matplotlib() -> Check:
    from fastcifar.results.style import as_png, build_figure

    as_png(build_figure(1, "a chart", ""))
    return Check("matplotlib", True, "draws")


def _check_caches() -> Check:
    """The caches of compiled code and fonts. Training works without them, but starts more slowly."""
    import matplotlib

    from fastcifar.kernels.gather_numba import IS_CACHED

    temporary = tempfile.gettempdir()
    lost = [] if IS_CACHED else ["the streamed loader is compiled each time (set NUMBA_CACHE_DIR to a folder)"]
    if Path(matplotlib.get_cachedir()).is_relative_to(temporary) and "MPLCONFIGDIR" not in os.environ:
        lost.append("fonts are searched each time (set MPLCONFIGDIR to a folder)")
    return Check("caches", True, "; ".join(lost) or f"can be written; temporary files go to {temporary}")


def _check_cpus() -> Check:
    return Check("CPU", True, f"{describe_cpu()}, {count_cpus()} of {os.cpu_count()} CPUs usable here")


def _check_memory() -> Check:
    free_gib = free_memory() / 2**30
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
