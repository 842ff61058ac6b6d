"""What a run leaves on the disk while it trains, and how it is taken up again: metrics lines and checkpoints."""

import math
import shlex
import time
from pathlib import Path
from typing import Any

from fastcifar.data import cifar10
from fastcifar.errors import FastcifarError
from fastcifar.results import run_dir as runs
from fastcifar.training.checkpoint import is_state, load_checkpoint, save_checkpoint
from fastcifar.training.settings import Settings
from fastcifar.training.trainer import Trainer

CHECKPOINT_INTERVAL_S = 10.0


class Record:
    """A run's metrics and state, in memory and on the disk.

    Checkpoints are written at the start, at an epoch's end but at most every ten seconds, and on leaving, however that
    happens.

    Args:
        settings: of the run.
        data_dir: where its data is, for a later `--resume`.
        run_dir: where to write; locked by the caller.
        trainer: whose state is kept. It is set to the checkpoint's if there is one.
        checkpoint: to go on from, as `read_last` gives it; None for a new run.
        writes: whether anything is written; of several ranks one does.

    Attributes:
        metrics: of every finished epoch, as in `metrics.jsonl`.
        best: epoch, validation accuracy and weights of the best epoch so far; empty before the first.

    Raises:
        FastcifarError: the checkpoint is of another model or optimizer.
    """

    def __init__(
        self, settings: Settings, data_dir: Path, run_dir: Path, trainer: Trainer, checkpoint: dict[str, Any] | None,
        *, writes: bool = True,
    ) -> None:  # fmt: skip
        self.metrics: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._trainer, self._run_dir, self._writes = trainer, run_dir, writes
        self._common = {
            "settings": settings.as_config(),
            "normalisation": {"mean": list(settings.recipe.mean), "std": list(settings.recipe.std)},
            "data": dict(cifar10.CONTENT.digests),
            "data_dir": str(data_dir.absolute()),
        }
        self._unsaved: dict[str, Any] | None = None
        self._saved_at = -math.inf
        self._start, self._seconds_before = time.monotonic(), 0.0
        if checkpoint is not None:
            try:
                trainer.load_state(checkpoint)
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                path = run_dir / runs.LAST
                raise FastcifarError(f"{path} is of another model or optimizer than this version's") from error
            self.metrics, self.best = checkpoint["metrics"], checkpoint["best"]
            self._seconds_before = checkpoint["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self._seconds_before + time.monotonic() - self._start

    def __enter__(self) -> None:
        self._unsaved = self._trainer.state()
        self._save()
        self._write_metrics()

    def __exit__(self, *_: object) -> None:
        self._save()

    def describe(self) -> str:
        """What of the run is saved once this is left."""
        if not self.metrics:
            return f"no epoch was finished, {self._run_dir} holds the untrained model"
        return f"{len(self.metrics)} finished epochs are saved in {self._run_dir}"

    def remedy(self) -> str:
        """How to go on."""
        return f"go on with `fastcifar train --resume {shlex.quote(str(self._run_dir))}`"

    def finish_epoch(self, metrics: dict[str, Any]) -> None:
        """Record an epoch that is finished and evaluated."""
        self.metrics.append(metrics)
        self._write_metrics()
        self._unsaved = self._trainer.state()
        if not self.best or metrics["val_accuracy"] > self.best["val_accuracy"]:
            self.best = {key: metrics[key] for key in ("epoch", "val_accuracy")} | {"model": self._unsaved["model"]}
        if time.monotonic() - self._saved_at >= CHECKPOINT_INTERVAL_S:
            self._save()

    def _write_metrics(self) -> None:
        if self._writes:
            runs.write_metrics(self._run_dir, self.metrics)

    def _save(self) -> None:
        if self._unsaved is None or not self._writes:
            return
        if self.best:
            save_checkpoint(self._run_dir / runs.BEST, {**self._common, **self.best})
        progress = {"num_epochs": len(self.metrics), "metrics": self.metrics, "best": self.best}
        last = {**self._common, **self._unsaved, **progress, "seconds": self.seconds}
        save_checkpoint(self._run_dir / runs.LAST, last)
        self._unsaved, self._saved_at = None, time.monotonic()


def read_last(run_dir: Path) -> dict[str, Any]:
    """Read a run's `last.pt`, as `Record` takes it.

    Raises:
        FastcifarError: there is none, it is damaged, or the run was of other data.
    """
    path = run_dir / runs.LAST
    content = load_checkpoint(path)
    best, metrics, num_epochs = content.get("best"), content.get("metrics"), content.get("num_epochs")
    sound = (
        isinstance(metrics, list)
        and type(num_epochs) is int
        and num_epochs == len(metrics)
        and all(runs.is_metrics(line) and line["epoch"] == epoch for epoch, line in enumerate(metrics))
        and isinstance(best, dict)
        and (_is_best(best, num_epochs, content["model"]) if metrics else not best)
        and type(content.get("seconds")) is float
        and isinstance(content.get("data_dir"), str)
        and isinstance(content.get("settings"), dict)
    )
    if not sound:
        raise FastcifarError(f"{path} is damaged, or no checkpoint to go on from")
    if content.get("data") != cifar10.CONTENT.digests:
        raise FastcifarError(f"{path} is of a run on other data than CIFAR-10 as this version splits it")
    return content


def _is_best(best: dict[str, Any], num_epochs: int, model: dict[str, Any]) -> bool:
    return (
        set(best) == {"epoch", "val_accuracy", "model"}
        and type(best["epoch"]) is int
        and 0 <= best["epoch"] < num_epochs
        and type(best["val_accuracy"]) is float
        and is_state(best["model"])
        and {name: value.shape for name, value in best["model"].items()}
        == {name: value.shape for name, value in model.items()}
    )
