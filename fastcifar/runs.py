"""The run directory: its settings, environment, metrics and results."""

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar import __version__
from fastcifar.cifar10 import IMAGE_SIZE, NUM_CLASSES, Images, Labels
from fastcifar.errors import FastcifarError
from fastcifar.files import read_json, read_text, replacing, sync, write_json, writing

CONFIG, METRICS, RESULTS = "config.json", "metrics.jsonl", "results.json"
PREDICTIONS, BEST, LAST = "predictions.npz", "best.pt", "last.pt"

# What others rely on; there is more in both files.
CONFIG_KEYS = ("recipe", "epochs", "seed", "precision", "device_name", "train_images")
METRICS_KEYS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "img_per_s", "seconds")


def check_unused(out: Path) -> None:
    """Refuse a run directory that holds something already.

    Raises:
        FastcifarError: it does, or cannot be read.
    """
    with writing(out):
        if out.exists() and next(out.iterdir(), None) is not None:
            raise FastcifarError(f"{out} is not empty: give a new directory with --out")


def create_run_dir(out: Path | None, recipe_name: str) -> Path:
    """Make the directory of a new run.

    Args:
        out: where; by default `runs/<recipe>-<time>`.
        recipe_name: for the default.

    Raises:
        FastcifarError: there is something in it already, or it cannot be made.
    """
    if out is None:
        now = datetime.datetime.now().astimezone()
        out = Path("runs") / f"{recipe_name}-{now:%Y%m%d-%H%M%S}"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        check_unused(out)
        # Two runs that were started at once both find it empty; only one makes this file.
        try:
            (out / METRICS).open("x").close()
        except FileExistsError:
            raise FastcifarError(f"{out} belongs to another run: give a new directory with --out") from None
    return out


def append_metrics(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Add one epoch's line to `metrics.jsonl`, on the disk when this returns."""
    path = run_dir / METRICS
    with writing(path):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        sync(path)


def write_config(run_dir: Path, settings: dict[str, Any]) -> None:
    """Write `config.json`: all resolved settings, and the machine and versions they ran on."""
    write_json(run_dir / CONFIG, {**settings, "environment": describe_environment()})


def write_results(run_dir: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    write_json(run_dir / RESULTS, results)


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        FastcifarError: it is missing or damaged, or was not written by a run.
    """
    path = run_dir / CONFIG
    config = read_json(path)
    missing = [key for key in CONFIG_KEYS if not isinstance(config, dict) or key not in config]
    if missing:
        raise FastcifarError(f"{path} is no run's configuration: it lacks {', '.join(missing)}")
    return dict(config)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Read the lines of `metrics.jsonl`, at least one.

    Raises:
        FastcifarError: it is missing, empty or damaged.
    """
    path = run_dir / METRICS
    metrics = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            values = json.loads(line)
            metrics.append({key: float(values[key]) for key in METRICS_KEYS})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FastcifarError(f"{path} is damaged: line {number} is no epoch's metrics") from error
    if not metrics:
        raise FastcifarError(f"{path} has no lines: the run finished no epoch")
    return metrics


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
    with replacing(run_dir / PREDICTIONS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=predictions.images, labels=predictions.labels, logits=predictions.logits)


def read_predictions(run_dir: Path) -> Predictions:
    """Read `predictions.npz`.

    Raises:
        FastcifarError: it is missing or damaged.
    """
    path = run_dir / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels, logits = file["images"], file["labels"], file["logits"]
    except FileNotFoundError as error:
        raise FastcifarError(f"{path} is missing: the run was not finished") from error
    except Exception as error:  # a damaged archive raises whatever its parser meets
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


def describe_environment() -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": describe_cpu(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "versions": package_versions(),
    }


def describe_cpu() -> str:
    """The processor's name as it states it itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def package_versions() -> dict[str, str]:
    """The versions of this package and of those whose arithmetic it rests on."""
    packages = ("torch", "torchvision", "ffcv", "numpy", "numba", "pillow")
    return {"fastcifar": __version__} | {package: importlib.metadata.version(package) for package in packages}
