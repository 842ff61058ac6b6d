"""The command line, called in this process or in a separate one, and the environment for both."""

import os
import sys
from pathlib import Path

import pytest
import torch

from fastcifar import cli
from fastcifar.machine import count_cpus

TESTS = Path(__file__).parents[1]
PROGRAMS = TESTS / "programs"
PYTHONPATH = f"{TESTS.parent}{os.pathsep}{TESTS}"
# Workers share the CPUs: threads that wait for other threads on the same core take many times longer.
NUM_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
NUM_THREADS = max(1, min(torch.get_num_threads(), count_cpus()) // NUM_WORKERS)
# What torchrun and other launchers set; the tests may themselves have been started by one.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {
    "PYTHONPATH": PYTHONPATH,
    "COLUMNS": "80",
    "OMP_NUM_THREADS": str(NUM_THREADS),
}
TRAIN = ["train", "--recipe", "adam89", "--batch-size", "8", "--device", "cpu"]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["fastcifar", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code or 0
    assert isinstance(code, int)
    return code, *capsys.readouterr()
