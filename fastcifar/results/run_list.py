"""The runs in a folder, as their files tell; nothing here needs torch."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.files import locked
from fastcifar.results import run_dir as runs


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        path: its directory.
        state: "finished", "running", "stopped" (it can be resumed) or "damaged".
        recipe: by name.
        num_epochs: that are finished.
        epochs: that it was to have.
        seed: of the run.
        test_accuracy: of the best weights, clean, once it is finished.
        img_per_s: the epochs' median, once it is finished.
        begun: when it was begun, local time.
    """

    path: Path
    state: str
    recipe: str = "?"
    num_epochs: int = 0
    epochs: int = 0
    seed: int | None = None
    test_accuracy: float | None = None
    img_per_s: float | None = None
    begun: datetime.datetime | None = None


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs directly in a folder, or the folder itself if it is one; the newest first.

    Raises:
        FastcifarError: there is no such folder, or it cannot be read.
    """
    if _is_run(folder):
        return [_summarise(folder)]
    try:
        found = [_summarise(path) for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    except OSError as error:
        raise FastcifarError(f"cannot read {folder}: {error.strerror}") from error
    return sorted(found, key=lambda run: (run.begun.timestamp() if run.begun else 0.0, str(run.path)), reverse=True)


def _is_run(folder: Path) -> bool:
    return (folder / runs.CONFIG).exists() and (folder / runs.METRICS).exists()


def _summarise(path: Path) -> RunSummary:
    try:
        config = runs.read_config(path)
        lines = (path / runs.METRICS).read_text(encoding="utf-8")
        metrics = runs.read_metrics(path) if lines else []
        results = runs.read_results(path) if (path / runs.RESULTS).exists() else None
        return RunSummary(
            path=path,
            state="finished" if results is not None else "stopped" if _is_free(path) else "running",
            recipe=config["recipe"],
            num_epochs=len(metrics),
            epochs=config["epochs"],
            seed=config["seed"],
            test_accuracy=None if results is None else float(results["best"]["test_accuracy"]),
            img_per_s=None if results is None else float(results["img_per_s"]),
            begun=datetime.datetime.fromisoformat(config["begun"]) if config.get("begun") else None,
        )
    except (FastcifarError, OSError, KeyError, TypeError, ValueError):
        return RunSummary(path=path, state="damaged")


def _is_free(path: Path) -> bool:
    try:
        with locked(path, "busy"):
            return True
    except FastcifarError:
        return False
