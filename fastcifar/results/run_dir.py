"""Run directories: created, locked, reopened, and listed, with the state of their run."""

import contextlib
import datetime
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.files import (
    is_leftover,
    locked,
    read_json,
    read_text,
    reading,
    remove_leftover,
    write_json,
    writing,
)
from fastcifar.results.records import (
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    read_config,
    read_metrics,
    read_results,
)

DIVERGED_FILE = "diverged.json"  # why the run must not be resumed


def check_unused(out: Path) -> None:
    """Refuse a run directory that is not empty, apart from files left by a run that was killed as it began.

    Raises:
        FastcifarError: it is not empty, or cannot be read.
    """
    with writing(out):
        if out.exists() and not all(is_leftover(path) for path in out.iterdir()):
            can_resume = _saved_state(out) == "stopped"
            hint = f", or continue with `fastcifar train --resume {shlex.quote(str(out))}`" if can_resume else ""
            raise FastcifarError(f"{out} is not empty: give a new directory{hint}")


def run_state(run_dir: Path) -> str:
    """The state of the run in a directory, which may not exist.

    Returns:
        "finished" if it has results; else "diverged" if its loss was not finite, "running" if a process is training it,
        "stopped" if it can be resumed, and "new" if there is nothing to resume.
    """
    state = _saved_state(run_dir)
    may_run = state in ("stopped", "new") and run_dir.is_dir()
    return "running" if may_run and not _is_free(run_dir) else state


def _saved_state(run_dir: Path) -> str:
    """The same for a run that no process is training, or this one."""
    if (run_dir / RESULTS_FILE).exists():
        return "finished"
    if (run_dir / DIVERGED_FILE).exists():
        return "diverged"
    return "stopped" if (run_dir / LAST_FILE).exists() else "new"


def _is_free(run_dir: Path) -> bool:
    try:
        with locked(run_dir, "busy"):
            return True
    except FastcifarError:
        return False


def write_diverged(run_dir: Path, reason: str) -> None:
    """Mark a run as diverged; the reason says where its loss was not finite."""
    write_json(run_dir / DIVERGED_FILE, {"reason": reason})


def read_diverged(run_dir: Path) -> str:
    """The reason from `write_diverged`.

    Raises:
        FastcifarError: the file is missing or damaged.
    """
    content = read_json(run_dir / DIVERGED_FILE)
    if not (isinstance(content, dict) and isinstance(content.get("reason"), str)):
        raise FastcifarError(f"{run_dir / DIVERGED_FILE} is damaged: it does not say why")
    return content["reason"]  # type: ignore[no-any-return]


@contextlib.contextmanager
def new_run_dir(out: Path | None, recipe_name: str) -> Iterator[Path]:
    """Create the directory of a new run, and keep other runs out of it.

    Args:
        out: its path; by default `runs/<recipe>-<time>`, with `-2`, `-3`, ... appended for more runs in that second.
        recipe_name: for the default.

    Raises:
        FastcifarError: it is not empty, another run uses it, or it cannot be created.
    """
    if out is None:
        out = _make_default_dir(recipe_name)
    else:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    with locked(out, f"{out} belongs to another run: give a new directory"):
        check_unused(out)
        _remove_leftovers(out)
        yield out


def _make_default_dir(recipe_name: str) -> Path:
    """Create a directory that no other run has."""
    now = datetime.datetime.now().astimezone()
    first = Path("runs") / f"{recipe_name}-{now:%Y%m%d-%H%M%S}"
    out, number = first, 1
    while True:
        with writing(out), contextlib.suppress(FileExistsError):
            out.mkdir(parents=True)
            return out
        number += 1
        out = first.with_name(f"{first.name}-{number}")


@contextlib.contextmanager
def interrupted_run_dir(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of the directory of a run that is to be resumed.

    Raises:
        FastcifarError: it is not a run directory, or the run is finished, has diverged, or is still running.
    """
    if not run_dir.is_dir():
        raise FastcifarError(f"{run_dir} is not a run directory: there is no such folder")
    with locked(run_dir, f"{run_dir} is still being trained by another process"):
        state = _saved_state(run_dir)
        if state == "finished":
            raise FastcifarError(f"{run_dir} is finished: there is nothing left to do")
        if state == "diverged":
            raise FastcifarError(f"{run_dir} has diverged ({read_diverged(run_dir)}): start a new run")
        if state == "new":
            raise FastcifarError(f"{run_dir} holds no {LAST_FILE} to resume from: start a new run")
        _remove_leftovers(run_dir)
        yield


def remove_leftovers(run_dir: Path) -> None:
    """Remove the temporary files of killed processes, unless a run is using the directory."""
    with contextlib.suppress(FastcifarError), locked(run_dir, "busy"):
        _remove_leftovers(run_dir)


def _remove_leftovers(run_dir: Path) -> None:
    with writing(run_dir):
        for folder in (run_dir, run_dir / "charts"):
            for path in folder.iterdir() if folder.exists() else ():
                if is_leftover(path):
                    remove_leftover(path)


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        path: its directory.
        state: from `run_state`, or "damaged".
        recipe: the recipe's name.
        num_epochs: the number of finished epochs.
        epochs: the number of epochs of the whole run.
        seed: its seed.
        test_accuracy: clean test accuracy of the best weights, once it is finished.
        img_per_s: the median over the epochs, once it is finished.
        begun: when it was started, local time.
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
    """The runs directly in a folder, or the folder itself if it is a run; the newest first.

    Raises:
        FastcifarError: there is no such folder, or it cannot be read.
    """
    if _is_run(folder):
        return [_summarise(folder)]
    with reading(folder):
        found = [_summarise(path) for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    return sorted(found, key=lambda run: (run.begun.timestamp() if run.begun else 0.0, str(run.path)), reverse=True)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists() and (folder / METRICS_FILE).exists()


def _summarise(path: Path) -> RunSummary:
    try:
        config = read_config(path)
        metrics = read_metrics(path) if read_text(path / METRICS_FILE) else []
        state = run_state(path)
        results = read_results(path) if state == "finished" else None
        return RunSummary(
            path=path,
            state=state,
            recipe=config.recipe,
            num_epochs=len(metrics),
            epochs=config.epochs,
            seed=config.seed,
            test_accuracy=None if results is None else results.best.test_accuracy,
            img_per_s=None if results is None else results.img_per_s,
            begun=config.begun,
        )
    except FastcifarError:
        return RunSummary(path=path, state="damaged")


def seed_dirs(folder: Path) -> dict[int, Path]:
    """The seed folders in a folder, `seed-<number>`, in order.

    Raises:
        FastcifarError: the folder cannot be read.
    """
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    seeds = sorted(int(name.removeprefix("seed-")) for name in names if re.fullmatch(r"seed-(0|[1-9]\d{0,9})", name))
    return {seed: folder / f"seed-{seed}" for seed in seeds}


def seed_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds seeds, else the folders in it that do, by name; none if it is or holds a run.

    Raises:
        FastcifarError: a folder cannot be read.
    """
    if seed_dirs(folder):
        return [folder]
    with reading(folder):
        inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [] if any(map(_is_run, [folder, *inside])) else [path for path in inside if seed_dirs(path)]
