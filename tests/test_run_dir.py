import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcifar import __version__
from fastcifar.errors import FastcifarError
from fastcifar.results.records import (
    Predictions,
    read_config,
    read_metrics,
    read_predictions,
    read_results,
    write_config,
    write_metrics,
    write_predictions,
    write_results,
)

LINE = {
    "epoch": 0,
    "train_loss": 2.0,
    "train_accuracy": 0.2,
    "val_loss": 1.9,
    "val_accuracy": 0.25,
    "lr": 0.1,
    "img_per_s": 100.0,
    "seconds": 1.5,
}
CONFIG = {
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


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    write_metrics(tmp_path, [LINE, LINE | {"epoch": 1}])
    write_predictions(tmp_path, build_predictions())
    config = read_config(tmp_path)
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["environment"]["versions"]["fastcifar"] == __version__
    assert config["environment"]["num_cpus"] >= 1
    assert read_metrics(tmp_path) == [LINE, LINE | {"epoch": 1}]
    read = read_predictions(tmp_path)
    for field in ("images", "labels", "logits"):
        np.testing.assert_array_equal(getattr(read, field), getattr(build_predictions(), field))


Damage = Callable[[Path], object]
METRICS_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: path.unlink(), "cannot read {path}: No such file or directory"),
    "empty": (lambda path: path.write_text(""), "{path} has no lines: the run finished no epoch"),
    "half a line": (lambda path: path.write_text('{"epoch": 0,'), "{path} is damaged: line 1 is no epoch's metrics"),
    "a key less": (lambda path: path.write_text('{"epoch": 0}'), "{path} is damaged: line 1 is no epoch's metrics"),
    "a list": (lambda path: path.write_text("[]"), "{path} is damaged: line 1 is no epoch's metrics"),
    "nested": (lambda path: path.write_text("[" * 99999), "{path} is damaged: line 1 is no epoch's metrics"),
    "no text": (lambda path: path.write_bytes(b"\xff"), "{path} is damaged: it is not UTF-8 text"),
}


@pytest.mark.parametrize("name", METRICS_DAMAGES)
def test_damaged_metrics_are_named(tmp_path: Path, name: str) -> None:
    damage, message = METRICS_DAMAGES[name]
    write_metrics(tmp_path, [LINE])
    path = tmp_path / "metrics.jsonl"
    damage(path)
    with pytest.raises(FastcifarError) as caught:
        read_metrics(tmp_path)
    assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ('{"recipe": "x"}', "epochs, seed"),
        ("[]", "recipe, epochs"),
        (json.dumps(CONFIG | {"epochs": "1"}), "epochs$"),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, content: str, missing: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(FastcifarError, match=rf"config\.json is no run's configuration: it lacks {missing}"):
        read_config(tmp_path)


def save(path: Path, **arrays: object) -> None:
    complete = {field: getattr(build_predictions(), field) for field in ("images", "labels", "logits")} | arrays
    kept: dict[str, Any] = {name: array for name, array in complete.items() if array is not None}
    np.savez(path, **kept)


NOT_FINITE = np.full((4, 10), np.nan, np.float32)
PREDICTIONS_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: None, "is missing: the run was not finished"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged: it is no archive of images, labels and logits"),
    "text": (lambda path: path.write_text("text"), "is damaged: it is no archive of images, labels and logits"),
    "no logits": (lambda path: save(path, logits=None), "is damaged: it is no archive of images, labels and logits"),
    "pickled": (lambda path: save(path, logits=np.array([{}])), "is damaged: it is no archive of images, labels and"),
    "shape": (lambda path: save(path, logits=np.eye(4, 9, dtype="f4")), "is damaged: its logits are float32 (4, 9)"),
    "dtype": (lambda path: save(path, labels=np.zeros(4, np.int64)), "is damaged: its labels are int64 (4,)"),
    "none": (lambda path: save(path, labels=np.zeros(0, np.uint8)), "is damaged: its labels are uint8 (0,)"),
    "label": (lambda path: save(path, labels=np.full(4, 10, np.uint8)), "is damaged: a label is not 0..9"),
    "not finite": (lambda path: save(path, logits=NOT_FINITE), "is damaged: a label is not 0..9, or a logit is no fin"),
}


@pytest.mark.parametrize("name", PREDICTIONS_DAMAGES)
def test_damaged_predictions_are_named(tmp_path: Path, name: str) -> None:
    damage, message = PREDICTIONS_DAMAGES[name]
    path = tmp_path / "predictions.npz"
    damage(path)
    with pytest.raises(FastcifarError) as caught:
        read_predictions(tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")


RESULTS_ROW = {"epoch": 0, "val_accuracy": 0.5, "test_accuracy": 1, "test_accuracy_augmented": 0.25}
RESULTS_FILE = {"best": RESULTS_ROW, "last": RESULTS_ROW, "num_test_images": 4, "img_per_s": 100.5}


def test_results_are_read_as_written(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS_FILE | {"more": "is kept"})
    assert read_results(tmp_path) == RESULTS_FILE | {"more": "is kept"}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"best": RESULTS_ROW},
        RESULTS_FILE | {"last": None},
        RESULTS_FILE | {"num_test_images": 0},
        RESULTS_FILE | {"num_test_images": True},
        RESULTS_FILE | {"img_per_s": float("nan")},
        RESULTS_FILE | {"best": RESULTS_ROW | {"test_accuracy": 1.01}},
        RESULTS_FILE | {"best": RESULTS_ROW | {"epoch": "1"}},
        RESULTS_FILE | {"last": {**RESULTS_ROW, "test_accuracy_augmented": -0.1}},
    ],
)
def test_damaged_results_are_named(tmp_path: Path, content: Any) -> None:
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(FastcifarError) as caught:
        read_results(tmp_path)
    assert str(caught.value) == f"{tmp_path}/results.json is damaged: it holds no run's results"
