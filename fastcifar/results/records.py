"""What a run directory holds as data: configuration, metrics, results and predictions, read and checked here only."""

import contextlib
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import IMAGE_SIZE, NUM_CLASSES, Images, Labels
from fastcifar.errors import FastcifarError
from fastcifar.files import read_json, read_text, replacing, write_json
from fastcifar.machine import describe_environment

CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.json", "metrics.jsonl", "results.json"
PREDICTIONS_FILE, BEST_FILE, LAST_FILE = "predictions.npz", "best.pt", "last.pt"

# Keys that version 0.1 wrote, and what they are called since.
_RENAMED = {
    "train_images": "num_train_images",
    "eval_images": "num_eval_images",
    "val_and_test_accuracy": "test10k_accuracy",
}
# What others rely on; there is more in both files.
CONFIG_TYPES = {
    "recipe": str,
    "epochs": int,
    "seed": int,
    "precision": str,
    "device_name": str,
    "num_train_images": int,
}
METRICS_KEYS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "img_per_s", "seconds")
RESULTS_KEYS = ("epoch", "val_accuracy", "test_accuracy", "test_accuracy_augmented")
_FLOAT32_MAX = 3.4028234663852886e38  # what is measured is no greater, and can be drawn


def with_present_names(values: dict[str, Any]) -> dict[str, Any]:
    """Configuration or results with the keys of this version, where version 0.1 wrote them under other names."""
    return {_RENAMED.get(key, key): value for key, value in values.items()}


def write_config(run_dir: Path, settings: dict[str, Any], *, resumed_at: int | None = None) -> None:
    """Write `config.json`: all resolved settings, and the machine and versions they ran on.

    Args:
        run_dir: the run's.
        settings: as `Settings.as_config` gives them.
        resumed_at: for a run that goes on, the number of epochs it had; its environments are kept side by side.
    """
    begun = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    here: dict[str, Any] = {"begun": begun, "environment": describe_environment()}
    if resumed_at is not None:
        with contextlib.suppress(FastcifarError):  # a run that was killed early has none yet
            before = read_config(run_dir)
            parts = before["resumed"] if isinstance(before.get("resumed"), list) else []
            parts.append({"num_epochs": resumed_at, **here})
            here = {"begun": before.get("begun"), "environment": before.get("environment"), "resumed": parts}
    write_json(run_dir / CONFIG_FILE, {**settings, **here})


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        FastcifarError: it is missing or damaged, or was not written by a run.
    """
    path = run_dir / CONFIG_FILE
    config = read_json(path)
    given = with_present_names(config) if isinstance(config, dict) else {}
    missing = [key for key, kind in CONFIG_TYPES.items() if type(given.get(key)) is not kind]
    if missing:
        raise FastcifarError(f"{path} is no run's configuration: it lacks {', '.join(missing)}")
    return given


def write_metrics(run_dir: Path, metrics: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`, a line an epoch; whole at every moment, because it is replaced."""
    with replacing(run_dir / METRICS_FILE) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Read the lines of `metrics.jsonl`, at least one.

    Raises:
        FastcifarError: it is missing, empty or damaged.
    """
    path = run_dir / METRICS_FILE
    metrics = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not is_metrics(values):
            raise FastcifarError(f"{path} is damaged: line {number} is no epoch's metrics")
        metrics.append({key: float(values[key]) for key in METRICS_KEYS})
    if not metrics:
        raise FastcifarError(f"{path} has no lines: the run finished no epoch")
    return metrics


def is_metrics(line: Any) -> bool:
    """Whether it is one epoch's metrics: a dict with the keys that others rely on, each a number in float32's range."""
    return isinstance(line, dict) and all(_is_finite(line.get(key)) for key in METRICS_KEYS)


def write_results(run_dir: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    write_json(run_dir / RESULTS_FILE, results)


def read_results(run_dir: Path) -> dict[str, Any]:
    """Read `results.json`.

    Returns:
        Under `best` and `last` at least `RESULTS_KEYS`, accuracies 0..1; `num_test_images`, at least 1; `img_per_s`.

    Raises:
        FastcifarError: it is missing or damaged.
    """
    path = run_dir / RESULTS_FILE
    results = read_json(path)
    sound = (
        isinstance(results, dict)
        and all(_is_row(results.get(name)) for name in ("best", "last"))
        and type(results.get("num_test_images")) is int
        and 1 <= results["num_test_images"] <= cifar10.SPEC.num_test
        and _is_finite(results.get("img_per_s"))
    )
    if not sound:
        raise FastcifarError(f"{path} is damaged: it holds no run's results")
    return with_present_names(results)


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(_is_finite(row.get(key)) for key in RESULTS_KEYS)
        and all(0 <= row[key] <= 1 for key in RESULTS_KEYS[1:])
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _FLOAT32_MAX


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model made of the test split.

    Attributes:
        images: `(N, 32, 32, 3)` uint8, N at least 1.
        labels: `(N,)` uint8 in 0..9.
        logits: `(N, 10)` float32, finite.
    """

    images: Images
    labels: Labels
    logits: NDArray[np.float32]


def write_predictions(run_dir: Path, predictions: Predictions) -> None:
    """Write `predictions.npz`."""
    with replacing(run_dir / PREDICTIONS_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=predictions.images, labels=predictions.labels, logits=predictions.logits)


def read_predictions(run_dir: Path) -> Predictions:
    """Read `predictions.npz`.

    Raises:
        FastcifarError: it is missing or damaged.
    """
    path = run_dir / PREDICTIONS_FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a bad file open
            images, labels, logits = arrays["images"], arrays["labels"], arrays["logits"]
    except FileNotFoundError as error:
        raise FastcifarError(f"{path} is missing: the run was not finished") from error
    except Exception as error:  # a damaged archive makes its parser raise almost anything
        raise FastcifarError(f"{path} is damaged: it is no archive of images, labels and logits") from error
    num_images = len(labels) if labels.ndim == 1 else -1
    for name, array, dtype, shape in (
        ("labels", labels, np.uint8, (num_images,)),
        ("images", images, np.uint8, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)),
        ("logits", logits, np.float32, (num_images, NUM_CLASSES)),
    ):
        if array.dtype != dtype or array.shape != shape or num_images < 1:
            raise FastcifarError(f"{path} is damaged: its {name} are {array.dtype} {array.shape}")
    if labels.max() >= NUM_CLASSES or not np.isfinite(logits).all():
        raise FastcifarError(f"{path} is damaged: a label is not 0..9, or a logit is no finite number")
    return Predictions(images, labels, logits)
