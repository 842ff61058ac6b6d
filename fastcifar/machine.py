"""The machine and the versions that a result depends on."""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar import __version__
from fastcifar.errors import FastcifarError

_CGROUPS, _PROC = Path("/sys/fs/cgroup"), Path("/proc")


def describe_environment() -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": describe_cpu(),
        "num_cpus": count_cpus(),
        "versions": package_versions(),
    }


def count_cpus() -> int:
    """The number of CPUs that this process may use: those it is bound to, but at most its container's share."""
    limits = _cgroup_limits("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    # Each is a quota and a period; a quota of -1 means no limit.
    shares = [math.ceil(values[0] / values[1]) for values in limits if len(values) == 2 and min(values) > 0]
    return min([len(os.sched_getaffinity(0)), *shares])


def free_memory() -> int:
    """Bytes of memory that this process may still take, in its container too; the page cache counts as free.

    Raises:
        OSError: the system does not report it.
    """
    free = [1024 * number for number in _numbers(_PROC, "meminfo:MemAvailable:")]
    version_2 = ("memory.max", "memory.current", "memory.stat:inactive_file")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat:total_inactive_file")
    for limit, used, cached in _cgroup_limits("memory", version_2, version_1):
        free.append(max(0, limit - used + cached))
    return min(free)


def _cgroup_limits(controller: str, version_2: tuple[str, ...], version_1: tuple[str, ...]) -> Iterator[list[int]]:
    """The numbers in these files, for each control group that this process is in and that sets a limit.

    A container sees its own group as the topmost one; elsewhere each group is bound by those above it. "file:key" means
    the number after that key.
    """
    try:
        lines = (_PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = _CGROUPS, version_2
        elif controller in controllers.split(","):
            top, names = _CGROUPS / controller, version_1
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError, IndexError):  # no limit: no such file, or "max" in it
                    yield [number for name in names for number in _numbers(folder, name)]


def _numbers(folder: Path, name: str) -> list[int]:
    """All numbers in a file, or the one after a key."""
    file, _, key = name.partition(":")
    words = (folder / file).read_text(encoding="utf-8").split()
    return [int(words[words.index(key) + 1])] if key else list(map(int, words))


def describe_cpu() -> str:
    """The processor's name for itself."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The processor's instruction sets and other features, by their Linux names; empty on other systems."""
    return frozenset((_cpu_info("flags") or _cpu_info("Features")).split())


def _cpu_info(key: str) -> str:
    """The first processor's value of a key in /proc/cpuinfo; empty if there is none."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def find_compiler() -> list[str] | None:
    """The command of the C++ compiler: `CXX`, which may hold arguments, else g++ or clang++; None without one."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++"):
        with contextlib.suppress(ValueError):  # CXX with an open quote
            words = shlex.split(command)
            if words and (path := shutil.which(words[0])):
                return [path, *words[1:]]
    return None


def package_versions() -> dict[str, str]:
    """The versions of this package and of the packages that do its arithmetic."""
    packages = ("torch", "torchvision", "ffcv", "numpy", "numba", "pillow")
    return {"fastcifar": __version__} | {package: _package_version(package) for package in packages}


def _package_version(package: str) -> str:
    """The version in the package's metadata, or "unknown": a copied or repackaged installation may lack metadata."""
    try:
        return importlib.metadata.version(package) or "unknown"
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return "unknown"


def check_installed(extra: str, *packages: str) -> None:
    """Check that optional packages are installed.

    Args:
        extra: the extra of this package that installs them.
        packages: their import names.

    Raises:
        FastcifarError: one is missing; the message says how to install it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise FastcifarError(f"{', '.join(missing)} not installed: pip install 'fastcifar[{extra}]'")
