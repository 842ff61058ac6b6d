import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import gpu_report  # noqa: E402
import throughput  # noqa: E402
from baselines import CONTENDERS  # noqa: E402


def run(out: Path, data: Path, *arguments: str) -> str:
    tiny = [
        "--device",
        "cpu",
        "--data",
        str(data),
        "--images",
        "40",
        "--batch-sizes",
        "8",
        "--rounds",
        "1",
        "--epochs",
        "1",
        "--seeds",
        "2",
    ]
    result = CliRunner().invoke(gpu_report.main, ["--out", str(out), *tiny, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_all_stages_on_a_cpu_with_tiny_sizes(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_TIMED_STEPS", 1)
    few = {name: CONTENDERS[name] for name in ("published", "fastcifar resident")}
    monkeypatch.setattr(throughput, "CONTENDERS", few)  # test_benchmarks.py has all of them
    out = tmp_path / "report"
    run(out, tiny_data)
    stages = {name: json.loads((out / f"{name}.json").read_text()) for name in gpu_report.STAGES}
    assert list(stages) == ["tests", "agreement", "throughput", "variants", "profile", "sgd92", "adam89"]
    assert stages["tests"]["passed"]
    agreement = stages["agreement"]
    assert agreement["images_that_differ"] == 0
    assert agreement["largest_logit_difference"] == 0  # the device is the CPU itself
    assert agreement["within_tolerance"]
    assert agreement["device_bf16_losses"] == pytest.approx(agreement["cpu_losses"], rel=0.2)
    assert {result["recipe"] for result in stages["throughput"]["results"]} == {"sgd92", "adam89"}
    variants = [(row["batch_size"], row["recipe"], row["variant"]) for row in stages["variants"]["rows"]]
    assert variants == [(8, "sgd92", "eager"), (8, "adam89", "eager")]
    assert all(row["img_per_s"]["median"] > 0 for row in stages["variants"]["rows"])
    assert sum(row["share"] for row in stages["profile"]["top"]) <= 1
    assert "convolution" in " ".join(row["name"] for row in stages["profile"]["top"])
    for name in ("sgd92", "adam89"):
        assert [row["seed"] for row in stages[name]["runs"]] == [42, 43]
        accuracies = [row["last"]["test_accuracy"] for row in stages[name]["runs"]]
        assert stages[name]["mean"]["test_accuracy"] == pytest.approx(sum(accuracies) / 2)
        assert (out / f"{name}-seed43" / "charts" / "curves.png").exists()
    report = (out / "report.md").read_text()
    assert "**Not measured on a GPU**" in report
    assert "0 of 65,536 augmented images differ from the CPU's" in report
    for name in stages:
        assert f"## {name} (" in report


def test_finished_stages_are_not_run_again(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    run(out, tiny_data, "--stage", "profile")
    before = (out / "profile.json").read_bytes()
    assert "profile: finished before" in run(out, tiny_data, "--stage", "profile", "--stage", "adam89")
    assert (out / "profile.json").read_bytes() == before
    assert "## adam89" in (out / "report.md").read_text()
    assert "## tests" not in (out / "report.md").read_text()
