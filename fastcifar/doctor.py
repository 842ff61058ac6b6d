"""Checks what training needs on this machine, and says how to fix problems."""

import importlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import FastcifarError, reason
from fastcifar.machine import count_cpus, describe_cpu, find_compiler, free_memory

_MIN_TORCH = (2, 11)
_MIN_FREE_GIB = 3  # a training at batch size 128 takes half of it on a CPU
_REMEDIES = {  # of a check that raises
    "temp files": "set TMPDIR to a folder that can be written",
    "torch": "install torch and torchvision again: bash tools/bootstrap.sh, or pip install --force-reinstall",
    "FFCV": "apt install libturbojpeg0-dev libopencv-imgproc-dev, then bash tools/bootstrap.sh",
    "matplotlib": "training needs it for charts only: pip install --force-reinstall matplotlib",
    "memory": "make sure that 3 GiB are free",
}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the name of the check.
        found: what was found.
        remedy: what to do; empty if nothing is wrong.
    """

    name: str
    found: str
    remedy: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.remedy


def examine(data_dir: Path) -> Iterator[Check]:
    """Check everything that training needs; this changes only the cache of compiled kernels.

    Args:
        data_dir: the data folder, which may not exist yet.

    Yields:
        Each check as it is done; some take seconds.
    """
    checks: dict[str, Callable[[], tuple[str, str]]] = {  # each returns what it found, and a remedy
        "Python": _check_python,
        "temp files": _check_temp_files,  # first, because torch needs them even to be imported
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
            yield Check(name, *check())
        except Exception as error:  # a package with a missing library may raise anything while it is imported
            why = reason(error)
            remedy = f"see {first_with[why]}" if why in first_with else _REMEDIES.get(name, "see the other lines")
            first_with.setdefault(why, name)
            yield Check(name, f"cannot be used ({why})", remedy)


def _check_python() -> tuple[str, str]:
    return platform.python_version(), "" if sys.version_info >= (3, 11) else "use 3.11 or later"


def _check_temp_files() -> tuple[str, str]:
    return f"go to {tempfile.gettempdir()}", ""


def _check_torch() -> tuple[str, str]:
    import torch
    import torchvision  # noqa: F401 (it has the network; its compiled part can fail although torch works)

    is_sound = tuple(map(int, torch.__version__.split(".")[:2])) >= _MIN_TORCH
    return torch.__version__, "" if is_sound else "pip install 'torch>=2.11' torchvision"


def _check_device() -> tuple[str, str]:
    import torch

    from fastcifar.training.device import is_bf16_fast, resolve_device

    device = resolve_device("auto")
    precision = "bf16" if is_bf16_fast(device) else "fp32, bf16 is slow here"
    if device.type == "cuda":
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {memory_gib:.0f} GiB, {precision}", ""
    if torch.version.cuda is not None and shutil.which("nvidia-smi"):
        return f"a GPU that torch does not see; CPU, {precision}", "repair the NVIDIA driver"
    return f"CPU, {precision}; no CUDA device, so the full recipes take hours", ""


def _check_compiler() -> tuple[str, str]:
    if command := find_compiler():
        return shlex.join(command), ""
    return "none for C++, which torch.compile and fast convolutions on a CPU need", "apt install g++"


def _check_convolution() -> tuple[str, str]:
    from fastcifar.kernels.winograd import why_unavailable
    from fastcifar.training.convolution import TORCH, choose_convolution
    from fastcifar.training.device import choose_precision, resolve_device

    device = resolve_device("auto")
    precision = choose_precision(device)
    convolution = choose_convolution("auto", device, precision)
    if device.type != "cpu":
        return "torch's (cuDNN)", ""
    if convolution == TORCH:
        return f"torch's: Winograd's were not measured in {precision} on this kind of CPU", ""
    if problem := why_unavailable():
        return f"torch's, which are slower: {problem}", ""
    return f"Winograd's in {precision} for {convolution} (channels@size:passes)", ""


def _check_ffcv() -> tuple[str, str]:
    importlib.import_module("fastcifar.pipeline.ffcv_reader")
    return "can be imported", ""


def _check_matplotlib() -> tuple[str, str]:
    from fastcifar.results.style import as_png, build_figure

    as_png(build_figure(1, "a chart", ""))
    return "can draw", ""


def _check_caches() -> tuple[str, str]:
    """The caches of compiled code and fonts. Training works without them, but starts more slowly."""
    import matplotlib

    from fastcifar.kernels.gather_numba import IS_CACHED

    lost = [] if IS_CACHED else ["the streamed loader is compiled each time (set NUMBA_CACHE_DIR to a folder)"]
    if Path(matplotlib.get_cachedir()).is_relative_to(tempfile.gettempdir()) and "MPLCONFIGDIR" not in os.environ:
        lost.append("fonts are searched each time (set MPLCONFIGDIR to a folder)")
    return "; ".join(lost) or "can be written", ""


def _check_cpus() -> tuple[str, str]:
    return f"{describe_cpu()}, {count_cpus()} of {os.cpu_count()} CPUs usable here", ""


def _check_memory() -> tuple[str, str]:
    free_gib = free_memory() / 2**30
    is_sound = free_gib >= _MIN_FREE_GIB
    remedy = "" if is_sound else f"free {_MIN_FREE_GIB} GiB, or train with a smaller --batch-size"
    return f"{free_gib:.1f} GiB free", remedy


def _check_data(data_dir: Path) -> tuple[str, str]:
    from fastcifar.data.beton import remedy
    from fastcifar.data.folder import is_prepared, verify_data

    command = f"fastcifar prepare --out {shlex.quote(str(data_dir))}"
    if not is_prepared(data_dir):
        return f"none in {data_dir}", f"{command} (`fastcifar train` does it by itself)"
    try:
        verify_data(data_dir)
    except FastcifarError as error:
        return str(error).removesuffix(f": {remedy(data_dir)}"), remedy(data_dir)
    return f"{data_dir} is prepared and sound", ""
