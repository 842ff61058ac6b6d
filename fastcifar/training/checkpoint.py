"""Checkpoints: complete, atomic, and loaded without running code in them.

A checkpoint is a file of torch.save, which torch.load reads. Its zip comment is the SHA-256 of everything before it,
because torch itself does not notice flipped bits in weights.
"""

import hashlib
import io
import math
import pickletools
import re
import shlex
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import cifar10
from fastcifar.errors import FastcifarError, counted
from fastcifar.files import reading, write_bytes
from fastcifar.results.records import (
    BEST_FILE,
    LAST_FILE,
    EpochMetrics,
    Share,
    as_plain,
    parse_record,
    write_metrics,
)
from fastcifar.results.run_dir import write_diverged
from fastcifar.training.settings import Settings
from fastcifar.training.trainer import Trainer

CHECKPOINT_INTERVAL_S = 10.0

_FORMAT = 2
_DIGEST_CHARS = 64
# The globals in a pickle of tensors and plain values. torch allows more: its bytearray could take any amount of memory.
_GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; at any moment `path` holds the former one or this one.

    Args:
        path: the file.
        content: tensors and plain values by name; `model` is the model's state dict.

    Raises:
        FastcifarError: the file cannot be written.
    """
    buffer = io.BytesIO()  # when torch writes to a file, its error does not say that the disk is full
    torch.save({"format": _FORMAT, **content}, buffer)
    write_bytes(path, seal(buffer.getvalue()))


def seal(archive: bytes) -> bytes:
    """Add the comment that `load_checkpoint` expects to a zip file without one."""
    content = archive[:-2] + _DIGEST_CHARS.to_bytes(2, "little")  # a zip file ends with its comment, after its length
    return content + hashlib.sha256(content).hexdigest().encode()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain values only.

    Raises:
        FastcifarError: it cannot be read, or is not a checkpoint of this package.
    """
    with reading(path):
        file_content = path.read_bytes()
    try:
        _check(file_content)
        content = torch.load(io.BytesIO(file_content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive makes its parser raise almost anything
        raise FastcifarError(f"{path} is damaged, or not a fastcifar checkpoint of format {_FORMAT}") from error
    sound = isinstance(content, dict) and type(content.get("format")) is int and content["format"] == _FORMAT
    if not (sound and is_state(content.get("model"))):
        raise FastcifarError(f"{path} is damaged, or not a fastcifar checkpoint of format {_FORMAT}")
    return dict(content)


def is_state(model: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    return isinstance(model, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in model.items()
    )


def is_sealed(file_content: bytes) -> bool:
    """Whether it looks like a file of `save_checkpoint`, even a damaged one: its comment is as long as a digest."""
    return file_content[-_DIGEST_CHARS - 2 : -_DIGEST_CHARS] == _DIGEST_CHARS.to_bytes(2, "little")


def _check(file_content: bytes) -> None:
    """Raise ValueError, or a parser's error, unless this is one of our checkpoints and safe for torch to read."""
    content, digest = file_content[:-_DIGEST_CHARS], file_content[-_DIGEST_CHARS:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("digest")
    check_archive(file_content)


def check_archive(file_content: bytes) -> None:
    """Raise ValueError, or a parser's error, unless this is a torch.save file of tensors and plain values."""
    with zipfile.ZipFile(io.BytesIO(file_content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")  # it could be a decompression bomb
        (pickled,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        for operation, argument, _ in pickletools.genops(archive.read(pickled)):
            if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise ValueError(argument)
            if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise ValueError(operation.name)


@dataclass(frozen=True, eq=False)
class BestEpoch:
    """The epoch with the highest validation accuracy so far.

    Attributes:
        epoch: counts from 0.
        val_accuracy: validation accuracy of that epoch.
        model: the model's state dict after that epoch.
    """

    epoch: int
    val_accuracy: Share
    model: dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LastCheckpoint:
    """The content of `last.pt`, from which a run can be resumed.

    Attributes:
        settings: from `Settings.as_config`.
        data: the digests of the splits that it was trained on.
        data_dir: the folder of these splits.
        num_epochs: the number of finished epochs.
        metrics: the metrics of each finished epoch.
        best: the best epoch; None before the first epoch has finished.
        seconds: wall time so far.
        state: from `Trainer.state`.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    data_dir: str
    num_epochs: int
    metrics: tuple[EpochMetrics, ...]
    best: BestEpoch | None
    seconds: float
    state: dict[str, Any]


class Checkpointer:
    """A run's metrics and state, in memory and on the disk.

    Checkpoints are written at the start, at the end of epochs but at most every ten seconds, and on leaving the context
    for any reason. At an epoch's end a thread writes while training continues. If writing fails, the error is raised at
    the end of a later epoch, once the thread has ended, or on leaving. No thread remains after that.

    Args:
        settings: the run's settings.
        data_dir: the data's folder, for a later `--resume`.
        run_dir: the folder to write to; locked by the caller.
        trainer: its state is saved. If there is a checkpoint, its state is set to the checkpoint's.
        checkpoint: the checkpoint to resume from, from `read_last`; None for a new run.
        writes: whether anything is written; only one of several ranks writes.

    Attributes:
        metrics: the metrics of every finished epoch, as in `metrics.jsonl`.
        best: the best epoch so far; None before the first.

    Raises:
        FastcifarError: the checkpoint is of another model or optimizer.
    """

    def __init__(
        self,
        settings: Settings,
        data_dir: Path,
        run_dir: Path,
        trainer: Trainer,
        checkpoint: LastCheckpoint | None,
        *,
        writes: bool = True,
    ) -> None:
        self.metrics: list[EpochMetrics] = []
        self.best: BestEpoch | None = None
        self._trainer, self._run_dir, self._writes = trainer, run_dir, writes
        self._common = {
            "settings": settings.as_config(),
            "normalisation": {"mean": list(settings.recipe.mean), "std": list(settings.recipe.std)},
            "data": dict(cifar10.SPEC.digests),
            "data_dir": str(data_dir.absolute()),
        }
        self._unsaved: dict[str, Any] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._saved_at = -math.inf
        self._start, self._seconds_before = time.monotonic(), 0.0
        if checkpoint is not None:
            try:
                trainer.load_state(checkpoint.state)
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                path = run_dir / LAST_FILE
                raise FastcifarError(f"{path} belongs to another model or optimizer than this version's") from error
            self.metrics, self.best = [*checkpoint.metrics], checkpoint.best
            self._seconds_before = checkpoint.seconds

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self._seconds_before + time.monotonic() - self._start

    def __enter__(self) -> None:
        self._unsaved = self._trainer.state()
        self._start_writing()
        self._finish_writing()
        self._write_metrics()

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self._start_writing()
            self._finish_writing()

    def describe(self) -> str:
        """Say what is saved of the run."""
        if not self.metrics:
            return f"no epoch was finished, {self._run_dir} holds the untrained model"
        return f"{self._run_dir} holds {counted(len(self.metrics), 'finished epoch')}"

    def remedy(self) -> str:
        """Say how to resume the run."""
        return f"continue with `fastcifar train --resume {shlex.quote(str(self._run_dir))}`"

    def mark_diverged(self, reason: str) -> None:
        """Record that the run must not be resumed, because its loss was not finite."""
        if self._writes:
            write_diverged(self._run_dir, reason)

    def finish_epoch(self, metrics: EpochMetrics) -> None:
        """Record an epoch that is finished and evaluated."""
        self.metrics.append(metrics)
        self._write_metrics()
        self._unsaved = self._trainer.state()
        if self.best is None or metrics.val_accuracy > self.best.val_accuracy:
            self.best = BestEpoch(metrics.epoch, metrics.val_accuracy, self._unsaved["model"])
        if self._writing is not None and self._writing.done():
            self._finish_writing()
        if time.monotonic() - self._saved_at >= CHECKPOINT_INTERVAL_S:
            self._start_writing()

    def _write_metrics(self) -> None:
        if self._writes:
            write_metrics(self._run_dir, self.metrics)

    def _start_writing(self) -> None:
        """Let the thread write what is not saved yet, after its previous work.

        Raises:
            FastcifarError: the previous write failed.
        """
        self._finish_writing()
        if self._unsaved is None or not self._writes:
            return
        contents = {}
        best = {} if self.best is None else vars(self.best)
        if best:
            contents[BEST_FILE] = {**self._common, **best}
        progress = {"num_epochs": len(self.metrics), "metrics": [*map(as_plain, self.metrics)], "best": best}
        contents[LAST_FILE] = {**self._common, **self._unsaved, **progress, "seconds": self.seconds}
        self._writing = self._writer.submit(self._write, contents)
        self._unsaved, self._saved_at = None, time.monotonic()

    def _write(self, contents: dict[str, dict[str, Any]]) -> None:
        for name, content in contents.items():
            save_checkpoint(self._run_dir / name, content)

    def _finish_writing(self) -> None:
        """Wait for the thread, and raise its error if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def read_last(run_dir: Path) -> LastCheckpoint:
    """Read a run's `last.pt`.

    Raises:
        FastcifarError: it is missing or damaged, or the run used other data.
    """
    path = run_dir / LAST_FILE
    content = load_checkpoint(path)
    damaged = f"{path} is damaged, or no checkpoint to resume from"
    if content.get("best") == {}:
        content["best"] = None
    state = {key: content.get(key) for key in ("model", "optimizer", "scheduler")}
    last = parse_record(LastCheckpoint, content | {"state": state}, damaged)
    if [line.epoch for line in last.metrics] != list(range(last.num_epochs)):
        raise FastcifarError(f"{damaged}: its metrics do not match its {counted(last.num_epochs, 'epoch')}")
    if not (_is_best(last.best, last.num_epochs, content["model"]) if last.best else last.num_epochs == 0):
        raise FastcifarError(f"{damaged}: its best epoch is not one of its {counted(last.num_epochs, 'epoch')}")
    if last.data != cifar10.SPEC.digests:
        raise FastcifarError(f"{path} belongs to a run on other data, or on another split of CIFAR-10")
    return last


def _is_best(best: BestEpoch, num_epochs: int, model: dict[str, torch.Tensor]) -> bool:
    shapes, expected = ({name: value.shape for name, value in each.items()} for each in (best.model, model))
    return 0 <= best.epoch < num_epochs and shapes == expected
