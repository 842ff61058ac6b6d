import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.command_line import ENVIRONMENT, PROGRAMS

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import gpu_report  # noqa: E402
import throughput  # noqa: E402
from baselines import CONTENDERS  # noqa: E402

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


@pytest.mark.slow
def test_all_stages_on_a_cpu_with_tiny_sizes(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_TIMED_STEPS", 1)
    few = {name: CONTENDERS[name] for name in ("published", "fastcifar resident")}
    monkeypatch.setattr(throughput, "CONTENDERS", few)  # test_benchmarks.py has all of them
    run(tmp_path, tiny_data)
    stages = {stage: found(tmp_path, stage) for stage in gpu_report.STAGES}
    assert not [row for rows in stages.values() for row in rows.values() if isinstance(row, dict) and "error" in row]
    assert stages["tests"]["pixels"] == {"angle_levels": 65536, "images_that_differ": 0}
    losses = stages["tests"]["losses"]
    assert list(losses) == ["cpu"]
    assert len(losses["cpu"]) == 5
    assert list(stages["switches"]) == ["all off, turn 1", "all on, turn 1", "all on, turn 2", "all off, turn 2"]
    assert list(stages["recipes"]) == ["sgd92, seed 42", "adam89, seed 42"]
    assert set(stages["profile"]["l2"]) == set(stages["distributed"]["nccl, one rank"]) == {"not done"}
    assert "**Not measured on a GPU**" in (tmp_path / "report.md").read_text()


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
    assert found(tmp_path, "steps") == {"good": 1, "bad": {"error": "ValueError: no such kernel"}, "late": 3}
    content = json.loads((tmp_path / "steps.json").read_text())
    del content["late"]
    (tmp_path / "steps.json").write_text(json.dumps(content))
    assert "steps, good: measured before" in run(tmp_path, tiny_data, "--stage", "steps")
    assert made == ["good", "bad", "late", "late"]


def test_it_runs_without_ffcv(tiny_data: Path, tmp_path: Path) -> None:
    """As on a GPU host that has torch and a bare checkout."""
    command = [sys.executable, str(PROGRAMS / "without_ffcv.py"), "--out", str(tmp_path), "--data", str(tiny_data)]
    command += [*TINY, "--stage", "steps"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = found(tmp_path, "steps")["steps"]
    assert isinstance(losses, list)
    assert len(losses) == 5
