"""Runs of version 0.1 can still be resumed, evaluated, drawn and reported. They are stored in tests/data."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.narrow import use_narrow_network

from fastcifar.inference.classifier import load_classifier
from fastcifar.inference.evaluation import evaluate_split
from fastcifar.results.charts import write_charts
from fastcifar.results.report import build_report
from fastcifar.results.run_dir import list_runs
from fastcifar.training.run import resume_training

STORED = Path(__file__).parent / "data" / "run-0.1"


@pytest.fixture(autouse=True)
def _narrow(tiny_data: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # undone before `tiny_data` undoes its own
        use_narrow_network(patch, width=4)  # as in the stored runs, so that they are small
        # oneDNN's AVX2 kernel for a 1x1 stride-2 convolution of 4 channels writes out of bounds (torch 2.15).
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        yield


def test_a_finished_run(tiny_data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(STORED / "finished", tmp_path / "run"))
    (listed,) = list_runs(tmp_path)
    assert (listed.state, listed.recipe, listed.num_epochs) == ("finished", "sgd92", 4)
    stored = json.loads((run / "results.json").read_text())["best"]["test_accuracy"]
    assert listed.test_accuracy == stored
    classifier = load_classifier(run)
    assert evaluate_split(classifier, tiny_data, "test").accuracy == stored
    assert {path.name for path in write_charts(run)} >= {"curves.png", "confusion.svg", "samples.png"}
    assert "num_train_images" in build_report([run])


def test_a_stopped_run_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    """It ends like the uninterrupted run, up to rounding: another CPU may sum in another order."""
    run = Path(shutil.copytree(STORED / "stopped", tmp_path / "run"))
    settings, _ = resume_training(run, tiny_data)
    assert (settings.num_train_images, settings.num_eval_images, settings.recipe.epochs) == (40, 10, 4)
    whole = [json.loads(line) for line in (STORED / "finished" / "metrics.jsonl").read_text().splitlines()]
    resumed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in resumed] == [0, 1, 2, 3]
    assert [line["train_loss"] for line in resumed] == pytest.approx([line["train_loss"] for line in whole], rel=1e-3)
    assert json.loads((run / "config.json").read_text())["num_train_images"] == 40
    assert list_runs(run)[0].state == "finished"
