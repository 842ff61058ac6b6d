"""A training run: data in, a run directory with checkpoints, metrics, results and charts out."""

import contextlib
import math
import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from fastcifar import cifar10, runs
from fastcifar.augment import build_geometry, choose_subset, draw_params
from fastcifar.checkpoint import save_checkpoint
from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.evaluate import compute_logits, loss_and_accuracy
from fastcifar.host_memory import freed_memory_kept
from fastcifar.loader import EpochPlanner, Loader, ResidentLoader, StreamedLoader
from fastcifar.prepare import Split, beton_path, load_train, load_val_and_test
from fastcifar.settings import Settings
from fastcifar.trainer import Trainer

_CHECKPOINT_INTERVAL_S = 10.0


class Observer(Protocol):
    """Is told how a run goes."""

    def note(self, line: str) -> None:
        """One line on what happens next."""

    def begin(self, num_epochs: int, num_steps: int, batch_size: int) -> None:
        """Training begins: so many epochs of so many steps."""

    def step(self, epoch: int, step: int) -> None:
        """A step was issued; both count from 0."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch ended; its line of `metrics.jsonl`."""


class _EvalSet:
    """The chosen images of val or test, on the device."""

    def __init__(self, split: Split, settings: Settings, device: torch.device) -> None:
        recipe = settings.recipe
        self._compile = settings.compile
        indices = torch.from_numpy(split.indices)
        chosen = choose_subset(indices, settings.eval_images)
        self.images = torch.from_numpy(split.images)[chosen].to(device)
        self.labels = torch.from_numpy(split.labels)[chosen].long().to(device)
        # Epoch 0 of the hash: an augmented test set that is the same for every model of a seed.
        params = draw_params(
            recipe.seed, 0, indices[chosen], padding=recipe.padding, max_angle_deg=recipe.max_angle_deg
        )
        self.geometry = build_geometry(params).to(device)

    def logits(self, trainer: Trainer, *, augmented: bool = False) -> Tensor:
        """The model's logits, `(N, 10)` float32."""
        return compute_logits(
            trainer.model,
            self.images,
            mean=trainer.mean,
            std=trainer.std,
            precision=trainer.precision,
            geometry=self.geometry if augmented else None,
            compile=self._compile,
        )


def train(settings: Settings, data_dir: Path, out: Path | None, observer: Observer) -> tuple[Path, dict[str, Any]]:
    """Train by a recipe, evaluate, and fill a run directory.

    Args:
        settings: from `settings.resolve_settings`.
        data_dir: a folder that `prepare` filled.
        out: the run directory, which must not hold anything yet; None for `runs/<recipe>-<time>`.
        observer: is told how it goes.

    Returns:
        The run directory, and what its `results.json` holds.

    Raises:
        FastcifarError: the data is damaged, a file cannot be written, the device has too little memory, or the loss is
            no number any more.
        Interrupted: SIGINT or SIGTERM came; the last finished epoch is saved.
    """
    is_cpu = settings.device == "cpu"
    try:
        with freed_memory_kept() if is_cpu else contextlib.nullcontext():
            return _train(settings, data_dir, out, observer)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise FastcifarError(
            f"{settings.device_name} has too little memory free: try a smaller --batch-size, or --loader streamed"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's allocator on the CPU has no exception type of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _train(settings: Settings, data_dir: Path, out: Path | None, observer: Observer) -> tuple[Path, dict[str, Any]]:
    start = time.perf_counter()
    recipe, device = settings.recipe, torch.device(settings.device)
    torch.set_num_threads(settings.num_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every training batch has the same shape
    observer.note(f"reading and checking {data_dir}")
    loader = _build_loader(settings, data_dir, device)
    val, test = (_EvalSet(split, settings, device) for split in load_val_and_test(data_dir))
    trainer = Trainer(recipe, device, precision=settings.precision, compile=settings.compile)
    run_dir = runs.create_run_dir(out, recipe.name)
    runs.write_config(run_dir, settings.as_config())
    if settings.compile:
        observer.note("compiling the step and the evaluation (about a minute, less when it is cached)")
        observer.note(f"compiled in {_warm_up(trainer, loader, val):.0f} s")

    record = _Record(settings, run_dir, trainer)
    observer.begin(recipe.epochs, loader.num_steps, recipe.batch_size)
    with _StopSignals() as signals:

        def stop_if_told() -> None:
            if signals.received is not None:
                raise Interrupted(signals.received, record.describe())

        with record:
            for epoch in range(recipe.epochs):
                epoch_start = time.perf_counter()
                lr = trainer.optimizer.param_groups[0]["lr"]

                def on_step(step: int, epoch: int = epoch) -> None:
                    observer.step(epoch, step)
                    stop_if_told()

                train_loss, train_accuracy = trainer.train_epoch(loader, epoch, on_step)
                train_seconds = time.perf_counter() - epoch_start
                val_loss, val_accuracy = loss_and_accuracy(val.logits(trainer), val.labels)
                if not math.isfinite(train_loss + val_loss):
                    raise FastcifarError(
                        f"the loss is no finite number any more in epoch {epoch + 1}: {record.describe()}"
                    )
                metrics = {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "val_loss": val_loss,
                    "val_accuracy": val_accuracy,
                    "lr": lr,
                    "img_per_s": loader.num_steps * recipe.batch_size / train_seconds,
                    "seconds": time.perf_counter() - epoch_start,
                }
                record.finish_epoch(metrics)
                observer.epoch(metrics)
                if epoch + 1 < recipe.epochs:
                    stop_if_told()
        signals.answer = "finishing the evaluation"
        observer.note("evaluating on the test split")
        results = _evaluate_checkpoints(record, trainer, val, test, run_dir)
        results["seconds"] = time.perf_counter() - start
        runs.write_results(run_dir, results)
        from fastcifar.charts import draw_charts  # a second for matplotlib, which no step needs

        draw_charts(run_dir)
    return run_dir, results


def _warm_up(trainer: Trainer, loader: Loader, val: _EvalSet) -> float:
    """Compile everything; returns the seconds it took."""
    start = time.perf_counter()
    try:
        with contextlib.closing(loader.epoch(0)) as batches:
            next(batches)
        trainer.warm_up()
        val.logits(trainer)
    except Exception as error:  # whatever a compiler, its absence, or torch's own code raises
        if _is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise FastcifarError(f"torch.compile failed ({reason}): give --no-compile to train without it") from error
    return time.perf_counter() - start


def _build_loader(settings: Settings, data_dir: Path, device: torch.device) -> Loader:
    split = load_train(data_dir)
    indices = torch.from_numpy(split.indices)
    chosen = choose_subset(indices, settings.train_images)
    recipe = settings.recipe

    def planner_on(where: torch.device) -> EpochPlanner:
        return EpochPlanner(
            indices[chosen].to(where),
            recipe.batch_size,
            seed=recipe.seed,
            padding=recipe.padding,
            max_angle_deg=recipe.max_angle_deg,
        )

    if settings.loader == "streamed":
        path = beton_path(data_dir, "train")
        return StreamedLoader(path, chosen, planner_on(torch.device("cpu")), device, settings.num_workers)
    images = torch.from_numpy(split.images)[chosen].to(device)
    labels = torch.from_numpy(split.labels)[chosen].long().to(device)
    return ResidentLoader(images, labels, planner_on(device), compile=settings.compile)


class _Record:
    """What a run leaves on the disk while it trains: metrics lines and checkpoints.

    Checkpoints are written at an epoch's end, but at most every ten seconds, and on leaving, however that happens.
    """

    def __init__(self, settings: Settings, run_dir: Path, trainer: Trainer) -> None:
        self.best: dict[str, Any] = {}
        self.metrics: list[dict[str, Any]] = []
        self._trainer, self._run_dir = trainer, run_dir
        self._common = {
            "settings": settings.as_config(),
            "normalisation": {"mean": list(settings.recipe.mean), "std": list(settings.recipe.std)},
            "data": dict(cifar10.CONTENT.digests),
        }
        self._unsaved: dict[str, Any] | None = None
        self._saved_at = -math.inf

    def __enter__(self) -> None:
        self._unsaved = self._trainer.state()
        self._save()

    def __exit__(self, *_: object) -> None:
        self._save()

    def describe(self) -> str:
        """What of the run is saved once this is left."""
        if not self.metrics:
            return f"no epoch was finished, {self._run_dir} holds the untrained model"
        return f"{len(self.metrics)} finished epochs are saved in {self._run_dir}"

    def finish_epoch(self, metrics: dict[str, Any]) -> None:
        """Record an epoch that is finished and evaluated."""
        runs.append_metrics(self._run_dir, metrics)
        self.metrics.append(metrics)
        self._unsaved = self._trainer.state()
        if not self.best or metrics["val_accuracy"] > self.best["val_accuracy"]:
            self.best = {key: metrics[key] for key in ("epoch", "val_accuracy")} | {"model": self._unsaved["model"]}
        if time.monotonic() - self._saved_at >= _CHECKPOINT_INTERVAL_S:
            self._save()

    def _save(self) -> None:
        if self._unsaved is None:
            return
        num_epochs = len(self.metrics)
        if self.best:
            save_checkpoint(self._run_dir / runs.BEST, {**self._common, **self.best})
        last = {**self._common, **self._unsaved, "num_epochs": num_epochs, "best": self.best, "metrics": self.metrics}
        save_checkpoint(self._run_dir / runs.LAST, last)
        self._unsaved, self._saved_at = None, time.monotonic()


def _evaluate_checkpoints(
    record: _Record, trainer: Trainer, val: _EvalSet, test: _EvalSet, run_dir: Path
) -> dict[str, Any]:
    """The test split by the last weights and by the best ones, clean and augmented; predictions by the best."""

    def evaluate(metrics: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        logits = test.logits(trainer)
        loss, accuracy = loss_and_accuracy(logits, test.labels)
        augmented = loss_and_accuracy(test.logits(trainer, augmented=True), test.labels)[1]
        return {
            "epoch": metrics["epoch"],
            "val_accuracy": metrics["val_accuracy"],
            "test_loss": loss,
            "test_accuracy": accuracy,
            "test_accuracy_augmented": augmented,
        }, logits

    last, logits = evaluate(record.metrics[-1])
    best = last
    if record.best["epoch"] != last["epoch"]:
        trainer.model.load_state_dict(record.best["model"])
        best, logits = evaluate(record.best)
    labels = test.labels.cpu().numpy().astype(np.uint8)
    predictions = runs.Predictions(test.images.cpu().numpy(), labels, logits.cpu().numpy())
    runs.write_predictions(run_dir, predictions)
    return {
        "best": best,
        "last": last,
        "num_test_images": len(test.labels),
        # Val and test together are the official 10,000 test images, of which others report; both count alike.
        "val_and_test_accuracy": (last["val_accuracy"] + last["test_accuracy"]) / 2,
        "img_per_s": statistics.median(metrics["img_per_s"] for metrics in record.metrics),
    }


class _StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of the first; a second one ends the process at once.

    Attributes:
        received: the first signal's number, or None.
        answer: what the first one is answered with.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.answer = "stopping after this step"
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None:
            os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the progress bar hid the cursor
            os._exit(128 + number)
        self.received = number
        os.write(2, f"{self.answer}; once more: at once\n".encode())
