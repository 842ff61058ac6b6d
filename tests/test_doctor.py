import importlib
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from support.command_line import ENVIRONMENT, call

from fastcifar import doctor
from fastcifar.doctor import Check, examine
from fastcifar.kernels import gather_numba


def found(data_dir: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(data_dir)}


def test_a_sound_machine_passes_every_check(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MIN_FREE_GIB", 0)
    checks = found(tiny_data)
    assert list(checks) == [
        "Python",
        "temp files",
        "torch",
        "device",
        "compiler",
        "convolution",
        "FFCV",
        "matplotlib",
        "caches",
        "CPU",
        "memory",
        "data",
    ]
    assert [name for name, check in checks.items() if not check.is_sound or check.remedy] == []
    assert checks["data"].found == f"{tiny_data} is prepared and sound"


def test_each_check_can_fail(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libturbojpeg.so.0: cannot open\nshared object file")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(doctor, "_MIN_TORCH", (99, 0))
    monkeypatch.setattr(doctor, "_MIN_FREE_GIB", 10**6)
    (tiny_data / "test.beton").write_bytes(b"")
    checks = found(tiny_data)
    assert [name for name, check in checks.items() if not check.is_sound] == [
        "torch",
        "compiler",
        "FFCV",
        "memory",
        "data",
    ]
    assert checks["FFCV"].found == "cannot be used (libturbojpeg.so.0: cannot open shared object file)"
    assert checks["data"].found == f"{tiny_data}/test.beton is damaged (it ends too early)"
    assert checks["data"].remedy == f"write it again with `fastcifar prepare --force --out {tiny_data}`"
    assert all(check.remedy for check in checks.values() if not check.is_sound)


def examine_elsewhere(script: str, data: Path) -> str:
    """The report of a doctor that finds problems, in a process of its own."""
    command = [sys.executable, "-c", script, str(data)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    return done.stdout


BROKEN = """
import os, sys, builtins
from pathlib import Path
from fastcifar import cli
real_import = builtins.__import__
def broken_import(name, *arguments, **more):
    if name.partition(".")[0] == "torch":
        raise OSError("libcublas.so.12: cannot open shared object file")
    return real_import(name, *arguments, **more)
builtins.__import__ = broken_import
sys.argv[1:] = ["doctor", "--data", sys.argv[1]]
cli.main()
"""


def test_a_package_that_cannot_be_imported_hides_no_other_check(tmp_path: Path) -> None:
    report = examine_elsewhere(BROKEN, tmp_path)
    reports = {line[9:21].strip(): line for line in report.splitlines() if line[:9].strip()}
    broken = [name for name, line in reports.items() if "(libcublas.so.12: cannot open shared object" in line]
    assert broken == ["torch", "device", "convolution", "FFCV"]
    assert report.count("see torch\n") == 3
    assert list(reports)[-1] == "data"


NO_TEMP_FILES = """
import sys, tempfile
from fastcifar import cli
tempfile._candidate_tempdir_list = lambda: ["/nonexistent"]
sys.argv[1:] = ["doctor", "--data", sys.argv[1]]
cli.main()
"""


def test_without_a_temporary_folder_the_checks_name_it(tmp_path: Path) -> None:
    report = examine_elsewhere(NO_TEMP_FILES, tmp_path)
    problem = "cannot be used ([Errno 2] No usable temporary directory found in ['/nonexistent'])"
    lines = report.splitlines()
    affected = {line[9:21].strip(): below.strip() for line, below in pairwise(lines) if line.endswith(problem)}
    assert affected.pop("temp files") == "set TMPDIR to a folder that can be written"
    assert set(affected.values()) == {"see temp files"}


def test_a_machine_without_meminfo_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    monkeypatch.setattr(doctor, "free_memory", fail)
    check = found(tmp_path)["memory"]
    assert (check.is_sound, check.found) == (
        False,
        "cannot be used ([Errno 2] No such file or directory: '/proc/meminfo')",
    )


@pytest.mark.parametrize(("is_cached", "start"), [(True, "can be written"), (False, "the streamed loader is compiled")])
def test_caches_that_cannot_be_written_are_reported_as_sound(
    is_cached: bool, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_numba, "IS_CACHED", is_cached)
    monkeypatch.setattr(matplotlib, "get_cachedir", lambda: "/home/user/.cache/matplotlib")
    found, remedy = doctor._check_caches()
    assert found.startswith(start)
    assert remedy == ""


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, remedy = doctor._check_device()
    assert found.startswith("a GPU that torch does not see; CPU, ")
    assert remedy == "repair the NVIDIA driver"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("CPU", "two of them"), Check("data", "none [here]", "make some")]
    monkeypatch.setattr(doctor, "examine", lambda data_dir: iter(checks))
    code, out, err = call(monkeypatch, capsys, "doctor")
    assert (code, err) == (2, "")
    assert out.splitlines() == [
        "ok       CPU         two of them",
        "problem  data        none [here]",
        "                     make some",
    ]
    monkeypatch.setattr(doctor, "examine", lambda data_dir: iter(checks[:1]))
    assert call(monkeypatch, capsys, "doctor") == (0, "ok       CPU         two of them\n", "")
