"""The command line, called in this process or in a separate one."""

import os
import sys
from pathlib import Path

import pytest

from fastcifar import cli

TESTS = Path(__file__).parents[1]
PROGRAMS = TESTS / "programs"
PYTHONPATH = f"{TESTS.parent}{os.pathsep}{TESTS}"
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "COLUMNS": "80"}
TRAIN = ["train", "--recipe", "adam89", "--batch-size", "8", "--device", "cpu"]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["fastcifar", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code or 0
    assert isinstance(code, int)
    return code, *capsys.readouterr()
