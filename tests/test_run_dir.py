import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support.command_line import call
from support.figure_parts import build_metrics, write_run

from fastcifar import __version__
from fastcifar.errors import FastcifarError
from fastcifar.files import locked
from fastcifar.results.records import (
    Predictions,
    Results,
    Scores,
    as_plain,
    parse_record,
    read_config,
    read_metrics,
    read_predictions,
    read_results,
    write_config,
    write_metrics,
    write_predictions,
    write_results,
)
from fastcifar.results.run_dir import check_unused, list_runs, read_diverged, run_state, write_diverged

LINES = build_metrics(2)
CONFIG = {
    "convolution": "torch",
    "recipe": "sgd92",
    "epochs": 1,
    "seed": 42,
    "precision": "fp32",
    "device_name": "x",
    "num_train_images": 128,
}


def build_predictions(num_images: int = 4) -> Predictions:
    return Predictions(
        np.zeros((num_images, 32, 32, 3), np.uint8),
        np.arange(num_images, dtype=np.uint8),
        np.eye(num_images, 10, dtype=np.float32),
    )


def test_written_files_are_read_back(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    write_metrics(tmp_path, LINES)
    write_predictions(tmp_path, build_predictions())
    config = read_config(tmp_path)
    assert config.settings == CONFIG
    assert {key: getattr(config, key) for key in CONFIG if key != "convolution"} | {"convolution": "torch"} == CONFIG
    assert config.environment["versions"]["fastcifar"] == __version__
    assert config.environment["num_cpus"] >= 1
    assert read_metrics(tmp_path) == LINES
    read = read_predictions(tmp_path)
    for field in ("images", "labels", "logits"):
        np.testing.assert_array_equal(getattr(read, field), getattr(build_predictions(), field))


def test_a_run_has_one_state(tmp_path: Path) -> None:
    assert run_state(tmp_path / "run") == "new"
    run_dir = write_run(tmp_path / "run", LINES, epochs=3)

    def states() -> set[str]:
        return {run_state(run_dir), list_runs(run_dir)[0].state, list_runs(tmp_path)[0].state}

    assert states() == {"stopped"}
    with locked(run_dir, ""):
        assert states() == {"running"}
    (run_dir / "last.pt").unlink()
    assert states() == {"new"}
    with locked(run_dir, ""):  # before its first checkpoint
        assert states() == {"running"}
    write_diverged(run_dir, "the loss is not finite")
    (run_dir / "last.pt").touch()
    assert states() == {"diverged"}
    assert read_diverged(run_dir) == "the loss is not finite"
    write_results(run_dir, RESULTS)
    assert states() == {"finished"}
    with locked(run_dir, ""):  # while its charts are drawn
        assert states() == {"finished"}


def test_only_a_stopped_run_is_suggested_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_diverged(write_run(tmp_path / "runs" / "seed-42", LINES, epochs=3), "the loss is not finite")
    code, out, err = call(monkeypatch, capsys, "runs")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [["run", "state"], ["seed-42", "diverged"]]
    with pytest.raises(FastcifarError, match=r"seed-42 is not empty: give a new directory$"):
        check_unused(Path("runs/seed-42"))
    code, out, err = call(monkeypatch, capsys, "train", "--resume", "runs/seed-42", "--quiet")
    assert (code, out) == (2, "")
    assert err == "Error: runs/seed-42 has diverged (the loss is not finite): start a new run\n"


Damage = Callable[[Path], object]
METRICS_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: path.unlink(), "cannot read {path}: No such file or directory"),
    "empty": (lambda path: path.write_text(""), "{path} has no lines: the run finished no epoch"),
    "half a line": (lambda path: path.write_text('{"epoch": 0,'), "{path} is damaged: line 1 is not valid JSON"),
    "a key less": (lambda path: path.write_text('{"epoch": 0}'), "{path} is damaged: line 1: train_loss is missing"),
    "a list": (lambda path: path.write_text("[]"), "{path} is damaged: line 1: it is not a mapping of names to values"),
    "nested": (lambda path: path.write_text("[" * 99999), "{path} is damaged: line 1 is not valid JSON"),
    "no text": (lambda path: path.write_bytes(b"\xff"), "{path} is damaged: it is not UTF-8 text"),
}


@pytest.mark.parametrize("name", METRICS_DAMAGES)
def test_damaged_metrics_are_named(tmp_path: Path, name: str) -> None:
    damage, message = METRICS_DAMAGES[name]
    write_metrics(tmp_path, LINES)
    path = tmp_path / "metrics.jsonl"
    damage(path)
    with pytest.raises(FastcifarError) as caught:
        read_metrics(tmp_path)
    assert str(caught.value) == message.format(path=path)


BEGUN = {"num_epochs": 1, "begun": "2026-11-25T20:00:00+01:00", "environment": {}}
CONFIG_DAMAGES: dict[str, tuple[object, str]] = {
    "a key less": ({"recipe": "x"}, "epochs is missing"),
    "a list": ([], "it is not a mapping of names to values"),
    "text for a number": (CONFIG | {"epochs": "1"}, "epochs is not a 64-bit integer"),
    "true for a number": (CONFIG | {"epochs": True}, "epochs is not a 64-bit integer"),
    "a number too great": (CONFIG | {"seed": 2**63}, "seed is not a 64-bit integer"),
    "a number for text": (CONFIG | {"recipe": 7}, "recipe is not text"),
    "out of range": (CONFIG | {"published_accuracy": 1.5}, "published_accuracy is not within 0 to 1"),
    "not a mapping": (CONFIG | {"environment": []}, "environment is not a mapping of names to values"),
    "not a list": (CONFIG | {"resumed": {}}, "resumed is not a list of the right length"),
    "nested": (
        CONFIG | {"resumed": [BEGUN, BEGUN | {"begun": 0}]},
        "resumed[1].begun is not a time with its offset from UTC",
    ),
    "no offset": (CONFIG | {"begun": "2026-11-25T20:00:00"}, "begun is not a time with its offset from UTC"),
}


@pytest.mark.parametrize("name", CONFIG_DAMAGES)
def test_damaged_configurations_are_named(tmp_path: Path, name: str) -> None:
    content, problem = CONFIG_DAMAGES[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FastcifarError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == f"{path} is damaged, or not a run's configuration: {problem}"


def test_a_run_that_went_on_keeps_its_environments(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    first = read_config(tmp_path)
    for num_epochs in (1, 3):
        write_config(tmp_path, CONFIG, resumed_at=num_epochs)
    config = read_config(tmp_path)
    assert (config.settings, config.begun, config.environment) == (CONFIG, first.begun, first.environment)
    assert [part.num_epochs for part in config.resumed] == [1, 3]
    assert config.resumed[1].environment == first.environment
    assert first.begun is not None
    assert config.resumed[1].begun >= first.begun


def save(path: Path, **arrays: object) -> None:
    complete = {field: getattr(build_predictions(), field) for field in ("images", "labels", "logits")} | arrays
    kept: dict[str, Any] = {name: array for name, array in complete.items() if array is not None}
    np.savez(path, **kept)


NOT_FINITE = np.full((4, 10), np.nan, np.float32)
PREDICTIONS_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: None, "is missing: the run was not finished"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged: it is not an archive of images, labels and"),
    "text": (lambda path: path.write_text("text"), "is damaged: it is not an archive of images, labels and"),
    "no logits": (lambda path: save(path, logits=None), "is damaged: it is not an archive of images, labels and"),
    "pickled": (lambda path: save(path, logits=np.array([{}])), "is damaged: it is not an archive of images, labels"),
    "shape": (lambda path: save(path, logits=np.eye(4, 9, dtype="f4")), "is damaged: its logits are float32 (4, 9)"),
    "dtype": (lambda path: save(path, labels=np.zeros(4, np.int64)), "is damaged: its labels are int64 (4,)"),
    "none": (lambda path: save(path, labels=np.zeros(0, np.uint8)), "is damaged: its labels are uint8 (0,)"),
    "label": (lambda path: save(path, labels=np.full(4, 10, np.uint8)), "is damaged: a label is not 0..9"),
    "not finite": (lambda path: save(path, logits=NOT_FINITE), "is damaged: a label is not 0..9, or a logit is not fi"),
}


@pytest.mark.parametrize("name", PREDICTIONS_DAMAGES)
def test_damaged_predictions_are_named(tmp_path: Path, name: str) -> None:
    damage, message = PREDICTIONS_DAMAGES[name]
    path = tmp_path / "predictions.npz"
    damage(path)
    with pytest.raises(FastcifarError) as caught:
        read_predictions(tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")


ROW = Scores(epoch=0, val_accuracy=0.5, test_loss=1.5, test_accuracy=1.0, test_accuracy_augmented=0.25)
RESULTS = Results(ROW, ROW, num_test_images=4, test10k_accuracy=0.5, img_per_s=100.5, seconds=9.0)
PLAIN_ROW, PLAIN = as_plain(ROW), as_plain(RESULTS)


def test_results_are_read_as_written(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "best": {
            "epoch": 0,
            "val_accuracy": 0.5,
            "test_loss": 1.5,
            "test_accuracy": 1.0,
            "test_accuracy_augmented": 0.25,
        },
        "last": PLAIN_ROW,
        "num_test_images": 4,
        "test10k_accuracy": 0.5,
        "img_per_s": 100.5,
        "seconds": 9.0,
    }


def test_integers_and_other_keys_are_accepted(tmp_path: Path) -> None:
    content = PLAIN | {"best": PLAIN_ROW | {"test_accuracy": 1}, "img_per_s": 100, "more": "is ignored"}
    (tmp_path / "results.json").write_text(json.dumps(content))
    read = read_results(tmp_path)
    assert read == replace(RESULTS, img_per_s=100.0)
    assert [type(read.best.test_accuracy), type(read.img_per_s)] == [float, float]


def test_a_run_of_version_0_1_is_read(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("num_train_images", "convolution")}
    (tmp_path / "config.json").write_text(json.dumps(config | {"train_images": 128, "eval_images": 9}))
    read = read_config(tmp_path)
    assert read.num_train_images == 128
    assert read.settings == CONFIG | {"num_eval_images": 9}
    results = {key: value for key, value in PLAIN.items() if key != "test10k_accuracy"}
    (tmp_path / "results.json").write_text(json.dumps(results | {"val_and_test_accuracy": 0.5}))
    assert read_results(tmp_path) == RESULTS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "it is not a mapping of names to values"),
        ({}, "best is missing"),
        ({"best": PLAIN_ROW}, "last is missing"),
        (PLAIN | {"last": None}, "last is not a mapping of names to values"),
        (PLAIN | {"num_test_images": 0}, "num_test_images is not within 1 to 10,000"),
        (PLAIN | {"num_test_images": True}, "num_test_images is not a 64-bit integer"),
        (PLAIN | {"img_per_s": float("nan")}, "img_per_s is not a finite float32 number"),
        (PLAIN | {"img_per_s": 1e39}, "img_per_s is not a finite float32 number"),
        (PLAIN | {"best": PLAIN_ROW | {"test_accuracy": 1.01}}, "best.test_accuracy is not within 0 to 1"),
        (PLAIN | {"best": PLAIN_ROW | {"epoch": "1"}}, "best.epoch is not a 64-bit integer"),
        (
            PLAIN | {"last": PLAIN_ROW | {"test_accuracy_augmented": -0.1}},
            "last.test_accuracy_augmented is not within 0 to 1",
        ),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, content: Any, problem: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(FastcifarError) as caught:
        read_results(tmp_path)
    assert str(caught.value) == f"{tmp_path}/results.json is damaged: {problem}"


@dataclass(frozen=True)
class Everything:
    pair: tuple[float, float]
    choice: Literal["a", "b"]
    flag: bool
    by_name: dict[str, float]
    count: int | None = None


SOUND = {"pair": [1, 2.5], "choice": "b", "flag": False, "by_name": {"x": 1}}


def test_every_kind_of_field() -> None:
    assert parse_record(Everything, SOUND, "x") == Everything((1.0, 2.5), "b", flag=False, by_name={"x": 1.0})
    assert parse_record(Everything, SOUND | {"count": 3, "other": 1}, "x").count == 3
    assert parse_record(Everything, SOUND | {"count": None}, "x", strict=True).count is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pair": [1.0]}, "pair is not a list of the right length"),
        ({"pair": [1.0, "2"]}, "pair[1] is not a finite float32 number"),
        ({"choice": "c"}, "choice is not a known choice"),
        ({"flag": 1}, "flag is not true or false"),
        ({"by_name": {"x\n": None}}, "by_name.x\\n is not a finite float32 number"),
        ({"by_name": {1: 1.0}}, "by_name is not a mapping of names to values"),
        ({"count": 1.0}, "count is not a 64-bit integer"),
        ({"a\x1b": 1}, "a\\x1b is not known"),
    ],
)
def test_every_kind_of_damage(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(FastcifarError) as caught:
        parse_record(Everything, SOUND | change, "x is damaged", strict=True)
    assert str(caught.value) == f"x is damaged: {problem}"
