import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command_line import call

from fastcifar import doctor
from fastcifar.doctor import Check, examine


def found(data_dir: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(data_dir)}


def test_a_sound_machine(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MIN_FREE_GIB", 0)
    checks = found(tiny_data)
    assert list(checks) == ["Python", "torch", "device", "compiler", "FFCV", "CPU", "memory", "data"]
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
    assert checks["FFCV"].found == "cannot be imported (libturbojpeg.so.0: cannot open shared object file)"
    assert checks["data"].found == f"{tiny_data}/test.beton is damaged (it ends too early)"
    assert checks["data"].remedy == f"write it again with `fastcifar prepare --force --out {tiny_data}`"
    assert all(check.remedy for check in checks.values() if not check.is_sound)


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = doctor._check_device()
    assert not check.is_sound
    assert check.remedy == "repair the NVIDIA driver"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("CPU", True, "two of them"), Check("data", False, "none [here]", "make some")]
    monkeypatch.setattr(doctor, "examine", lambda data_dir: iter(checks))
    code, out, err = call(monkeypatch, capsys, "doctor")
    assert (code, err) == (2, "")
    assert out.splitlines() == [
        "ok       CPU       two of them",
        "problem  data      none [here]",
        "                   make some",
    ]
    monkeypatch.setattr(doctor, "examine", lambda data_dir: iter(checks[:1]))
    assert call(monkeypatch, capsys, "doctor") == (0, "ok       CPU       two of them\n", "")
