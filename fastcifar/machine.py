"""The machine and the versions that a result depends on."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from fastcifar import __version__
from fastcifar.errors import FastcifarError


def describe_environment() -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": describe_cpu(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "versions": package_versions(),
    }


def describe_cpu() -> str:
    """The processor's name as it states it itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def package_versions() -> dict[str, str]:
    """The versions of this package and of those whose arithmetic it rests on."""
    packages = ("torch", "torchvision", "ffcv", "numpy", "numba", "pillow")
    return {"fastcifar": __version__} | {package: _package_version(package) for package in packages}


def _package_version(package: str) -> str:
    """What the package's metadata says, or "unknown": a copied or repackaged installation may lack it."""
    try:
        return importlib.metadata.version(package) or "unknown"
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return "unknown"


def check_installed(extra: str, *packages: str) -> None:
    """Refuse what needs packages that are not installed.

    Args:
        extra: of this package's installation, that brings them.
        packages: as they are imported.

    Raises:
        FastcifarError: one is missing; it says how to install it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise FastcifarError(f"{', '.join(missing)} not installed: pip install 'fastcifar[{extra}]'")
