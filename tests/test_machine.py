import os
from pathlib import Path

import pytest

from fastcifar import machine
from fastcifar.machine import count_cpus, free_memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs and 100 GiB without limits."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    write(tmp_path / "proc/meminfo", f"MemTotal: {2**30} kB\nMemAvailable: {100 * 2**20} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_a_machine_without_control_groups(system: Path) -> None:
    assert (count_cpus(), free_memory()) == (64, 100 * GIB)


@pytest.mark.parametrize(("quota", "count"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 64)])
def test_a_container_with_its_own_groups(system: Path, quota: str, count: int) -> None:
    write(system / "proc/self/cgroup", "0::/")
    write(system / "cgroup/cpu.max", quota)
    write(system / "cgroup/memory.max", str(4 * GIB))
    write(system / "cgroup/memory.current", str(3 * GIB))
    write(system / "cgroup/memory.stat", f"anon 5\ninactive_file {GIB}\nfile 7")
    assert (count_cpus(), free_memory()) == (count, 2 * GIB)


def test_the_narrowest_group_counts(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/slice/job/task")
    write(system / "cgroup/slice/cpu.max", "300000 100000")
    write(system / "cgroup/slice/job/cpu.max", "800000 100000")
    write(system / "cgroup/slice/job/task/cpu.max", "max 100000")
    write(system / "cgroup/slice/job/memory.max", "max")
    for folder, limit in (("slice/job/task", 8 * GIB), ("slice", 6 * GIB)):
        write(system / f"cgroup/{folder}/memory.max", str(limit))
        write(system / f"cgroup/{folder}/memory.current", str(GIB))
        write(system / f"cgroup/{folder}/memory.stat", "inactive_file 0")
    assert (count_cpus(), free_memory()) == (3, 5 * GIB)


@pytest.mark.parametrize("path", ["/", "/docker/0123"])  # the second is the host's name of the group, in a container
def test_version_1(system: Path, path: str) -> None:
    write(system / "proc/self/cgroup", f"5:cpu,cpuacct:{path}\n4:memory:{path}\n1:name=systemd:/\n0::/")
    write(system / "cgroup/cpu/cpu.cfs_quota_us", "400000")
    write(system / "cgroup/cpu/cpu.cfs_period_us", "100000")
    write(system / "cgroup/memory/memory.limit_in_bytes", str(2 * GIB))
    write(system / "cgroup/memory/memory.usage_in_bytes", str(GIB))
    write(system / "cgroup/memory/memory.stat", f"cache 1\ntotal_inactive_file {GIB // 2}")
    assert (count_cpus(), free_memory()) == (4, 1.5 * GIB)
    write(system / "cgroup/cpu/cpu.cfs_quota_us", "-1")
    assert count_cpus() == 64


def test_invalid_quotas_are_ignored(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/")
    for quota in ("", "x y", "100000", "0 0", "5 0", "-3 9"):
        write(system / "cgroup/cpu.max", quota)
        assert count_cpus() == 64, quota
