"""The run directory: its settings, environment, metrics and results."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from fastcifar import __version__
from fastcifar.errors import FastcifarError
from fastcifar.files import sync, write_json, writing

CONFIG, METRICS, RESULTS = "config.json", "metrics.jsonl", "results.json"
PREDICTIONS, BEST, LAST = "predictions.npz", "best.pt", "last.pt"


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
        if next(out.iterdir(), None) is not None:
            raise FastcifarError(f"{out} is not empty: give a new directory with --out")
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


def describe_environment() -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
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
