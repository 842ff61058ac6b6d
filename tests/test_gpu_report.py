import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_report
import pytest
from click.testing import CliRunner
from support.command_line import ENVIRONMENT, PROGRAMS

from fastcifar.errors import Interrupted

BARE_HOST = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(PROGRAMS / "bare_host"), ENVIRONMENT["PYTHONPATH"]])}
TINY = ["--device", "cpu", "--images", "40", "--batch-size", "8", "--rounds", "1", "--epochs", "1", "--seeds", "1"]


def run(out: Path, data: Path, *arguments: str) -> str:
    arguments = ("--out", str(out), "--data", str(data), *TINY, *arguments)
    result = CliRunner().invoke(gpu_report.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def found(out: Path, stage: str) -> dict[str, Any]:
    rows = json.loads((out / f"{stage}.json").read_text())
    rows.pop("machine")
    return {key: row["found"] for key, row in rows.items()}


def run_as_a_program(out: Path, data: Path, *, has_ffcv: bool, arguments: list[str]) -> None:
    """In a separate process; without FFCV, it and its child processes cannot import scipy either."""
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / "tiny_gpu_report.py"), "--out", str(out)]
    environment = ENVIRONMENT if has_ffcv else BARE_HOST
    command += ["--data", str(data), *TINY, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("has_ffcv", [True, False])
def test_all_stages_on_a_cpu_with_tiny_sizes(tiny_data: Path, tmp_path: Path, has_ffcv: bool) -> None:
    out = tmp_path / "out"
    run_as_a_program(out, tiny_data, has_ffcv=has_ffcv, arguments=[])
    stages = {stage: found(out, stage) for stage in gpu_report.STAGES}
    assert not [row for rows in stages.values() for row in rows.values() if isinstance(row, dict) and "error" in row]
    assert stages["tests"]["pytest"]["passed"]
    assert stages["tests"]["pixels"] == {"angle_levels": 65536, "images_that_differ": 0}
    losses = stages["tests"]["losses"]
    assert losses["not done"] == "there is no GPU to compare with"
    assert len(losses["losses"]["cpu"]) == 5
    assert list(stages["switches"]) == ["all on, turn 1", "all off, turn 1", "all off, turn 2", "all on, turn 2"]
    for name in ("sgd92", "adam89"):
        (table,) = stages["throughput"][name]["results"]
        assert {row["name"] for row in table["contenders"]} >= {"published", "fastcifar resident"}
        assert set(table["failures"]) == (set() if has_ffcv else {"stock FFCV"})
    assert list(stages["recipes"]) == ["sgd92, seed 42", "adam89, seed 42"]
    assert set(stages["profile"]["l2"]) == set(stages["distributed"]["nccl, one rank"]) == {"not done"}
    assert "**Not measured on a GPU**" in (out / "report.md").read_text()
    files = [path for path in out.iterdir() if path.is_file()]
    assert len(files) <= 8
    assert all(path.stat().st_size < 1 << 24 for path in files)


def test_a_stage_goes_on_where_it_was_cut_off(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def measure(name: str) -> object:
        made.append(name)
        if name == "bad":
            raise ValueError("no such kernel")
        return len(made)

    def stage(_: gpu_report.Campaign) -> gpu_report.Measurements:
        return {name: functools.partial(measure, name) for name in ("good", "bad", "late")}

    monkeypatch.setitem(gpu_report.STAGES, "steps", stage)
    run(tmp_path, tiny_data, "--stage", "steps")
    rows = found(tmp_path, "steps")
    assert (rows["good"], rows["bad"]["error"], rows["late"]) == (1, "ValueError: no such kernel", 3)
    assert "in measure" in rows["bad"]["traceback"]
    content = json.loads((tmp_path / "steps.json").read_text())
    del content["late"]
    (tmp_path / "steps.json").write_text(json.dumps(content))
    assert "steps, good: measured before" in run(tmp_path, tiny_data, "--stage", "steps")
    assert made == ["good", "bad", "late", "late", "bad"]  # a failure is tried again, at the end


def test_a_stage_ends_after_a_failed_capture(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"first": {"capture_failure": "not permitted"}, "second": {"capture_failure": None}}
    stage = {name: functools.partial(dict[str, Any], row) for name, row in rows.items()}
    monkeypatch.setitem(gpu_report.STAGES, "steps", lambda _: stage)
    assert "steps: repeat the command for what is left" in run(tmp_path, tiny_data, "--stage", "steps")
    assert list(found(tmp_path, "steps")) == ["first"]
    run(tmp_path, tiny_data, "--stage", "steps")
    assert found(tmp_path, "steps") == rows


def test_a_measurement_that_was_stopped_is_made_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure() -> None:
        raise Interrupted(signal.SIGTERM, "2 epochs are saved")

    monkeypatch.setitem(gpu_report.STAGES, "steps", lambda _: {"run": measure})
    arguments = ["--out", str(tmp_path), "--data", str(tiny_data), *TINY, "--stage", "steps"]
    result = CliRunner().invoke(gpu_report.main, arguments)
    assert result.exit_code == 1
    assert "2 epochs are saved" in result.output
    assert not (tmp_path / "steps.json").exists()


def test_a_stage_ends_in_time(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends before a measurement that would take too long, if that takes as long as the longest one so far."""
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: seconds)

    def measure(takes: float) -> None:
        nonlocal seconds
        seconds += takes

    def stage(_: gpu_report.Campaign) -> gpu_report.Measurements:
        return {f"{takes} s": functools.partial(measure, takes) for takes in (200, 120, 150, 10)}

    monkeypatch.setitem(gpu_report.STAGES, "steps", stage)
    output = run(tmp_path, tiny_data, "--stage", "steps")
    assert list(found(tmp_path, "steps")) == ["200 s", "120 s"]  # 320 s are used up, and 200 s more would be too long
    assert "steps: no time for 150 s: repeat the command for what is left" in output
    run(tmp_path, tiny_data, "--stage", "steps")
    assert list(found(tmp_path, "steps")) == ["200 s", "120 s", "150 s", "10 s"]


@pytest.mark.parametrize(("last", "agrees"), [(2.0, True), (3.0, False)])
def test_losses_agree_on_the_first_step_and_on_average(last: float, agrees: bool) -> None:
    compared = gpu_report.compared({"cpu": [2.3, 2.2, 2.0], "cuda": [2.31, 2.2, last]})
    assert compared["agree"] == agrees
    assert compared["first_differs_by"] == pytest.approx(0.01 / 2.31)
    assert not gpu_report.compared({"cpu": [2.3, 2.2], "cuda": [2.35, 2.2]})["agree"]


def test_it_runs_without_ffcv(tiny_data: Path, tmp_path: Path) -> None:
    run_as_a_program(tmp_path, tiny_data, has_ffcv=False, arguments=["--stage", "steps"])
    losses = found(tmp_path, "steps")["steps"]
    assert isinstance(losses, list)
    assert len(losses) == 5


def test_random_images_need_no_data(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = run(out, tmp_path / "none", "--random-images", "--stage", "steps", "--stage", "recipes")
    assert "recipes: left out, because it needs CIFAR-10" in output
    assert not (out / "recipes.json").exists()
    assert len(found(out, "steps")["steps"]) == 5
    assert "Some of it on random images." in (out / "report.md").read_text()


def test_a_bare_host_finds_the_gpu_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run(command, cwd=gpu_report.ROOT, env=BARE_HOST, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "test_trainer.py::test_a_captured_step" in done.stdout
    assert {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line} == set(gpu_report.GPU_TESTS)
