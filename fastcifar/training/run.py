"""A training run: data in, a run directory with checkpoints, metrics, results and charts out."""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcifar.data.prepare import is_untouched, prepare_data
from fastcifar.distributed import LostPeerError, World, joined
from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.results import run_dir as runs
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.callbacks import Observer
from fastcifar.training.evaluate import loss_and_accuracy
from fastcifar.training.parts import Parts, is_out_of_memory
from fastcifar.training.record import Record, read_last
from fastcifar.training.settings import Settings, restore_settings
from fastcifar.training.signals import StopSignals


def train_model(
    settings: Settings, data_dir: Path, out: Path | None = None, observer: Observer | None = None
) -> tuple[Path, dict[str, Any]]:
    """Train by a recipe, evaluate, and fill a run directory.

    Under torchrun every process calls this with the settings it resolved; rank 0 writes the files and tells the
    observer. Where torchrun started all of them anew after a failure, the run goes on from its last checkpoint.

    Args:
        settings: from `settings.resolve_settings`.
        data_dir: a folder that `prepare` filled, or that is to be filled so; each machine has its own, or all share it.
        out: the run directory, which must not hold anything yet; None for `runs/<recipe>-<time>`.
        observer: is told how it goes; None for nobody.

    Returns:
        The run directory, and what its `results.json` holds.

    Raises:
        FastcifarError: the data is damaged, a file cannot be written, the device has too little memory, or the loss is
            no number any more.
        Interrupted: SIGINT or SIGTERM came; the last finished epoch is saved.
    """
    with joined() as world, contextlib.ExitStack() as stack:
        observer = observer if observer and world.is_main else Observer()
        if out is not None:
            if world.maximum(world.num_restarts) and world.broadcast(runs.is_stopped(out)):
                return out, resume_training(out, data_dir, observer)[1]
            if world.is_main:
                runs.check_unused(out)
        stack.enter_context(_on_device(settings))
        _prepare_everywhere(data_dir, world, observer)
        parts = Parts(settings, data_dir, world, observer)
        new_run_dir = runs.new_run_dir(out, settings.recipe.name)
        run_dir = world.broadcast(stack.enter_context(new_run_dir) if world.is_main else None)
        return run_dir, _train(parts, data_dir, run_dir, observer, None)


def resume_training(
    run_dir: Path, data_dir: Path | None = None, observer: Observer | None = None
) -> tuple[Settings, dict[str, Any]]:
    """Go on with a run that was stopped, with its own settings, from its last checkpoint.

    On a CPU of the same kind with the same torch, the weights and metrics are, to the last bit, those of the run that
    was never stopped.

    Args:
        run_dir: of a run that is not finished.
        data_dir: a folder that `prepare` filled; None for the one it was begun with.
        observer: is told how it goes; None for nobody.

    Returns:
        The run's settings, and what its `results.json` holds.

    Raises:
        FastcifarError: as `train`, and where the run cannot go on here.
        Interrupted: as `train`.
    """
    with joined() as world, contextlib.ExitStack() as stack:
        observer = observer if observer and world.is_main else Observer()
        if world.is_main:
            stack.enter_context(runs.interrupted_run_dir(run_dir))
        checkpoint = world.broadcast(read_last(run_dir) if world.is_main else None)
        try:
            settings = restore_settings(checkpoint["settings"])
        except FastcifarError as error:
            raise FastcifarError(f"cannot resume {run_dir}: {error}") from error
        data_dir = Path(checkpoint["data_dir"]) if data_dir is None else data_dir
        stack.enter_context(_on_device(settings))
        parts = Parts(settings, data_dir, world, observer)
        return settings, _train(parts, data_dir, run_dir, observer, checkpoint)


def _prepare_everywhere(data_dir: Path, world: World, observer: Observer) -> None:
    """Prepare data where there is none: by rank 0 for all that share its folder, then once on every other machine."""
    for is_mine in (world.is_main, world.local_rank == 0):
        if is_mine and is_untouched(data_dir):
            prepare_data(data_dir, report=observer.note)
        world.barrier()


@contextlib.contextmanager
def _on_device(settings: Settings) -> Iterator[None]:
    """Set torch up for a run; what it lacks in memory is an error of one line."""
    device = torch.device(settings.device)
    torch.set_num_threads(settings.num_threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing here reads any
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not settings.deterministic  # every training batch has the same shape
    try:
        with freed_memory_kept(device.type):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FastcifarError(
            f"{settings.device_name} has too little memory free: try a smaller --batch-size, or --loader streamed"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)


def _train(
    parts: Parts, data_dir: Path, run_dir: Path, observer: Observer, checkpoint: dict[str, Any] | None
) -> dict[str, Any]:
    """Train what is left of a run; returns what its `results.json` holds."""
    settings, world = parts.settings, parts.world
    recipe = settings.recipe
    record = Record(settings, data_dir, run_dir, parts.trainer, checkpoint, writes=world.is_main)
    first_epoch = len(record.metrics)
    if settings.compile:
        observer.note("compiling the step and the evaluation (about a minute, less when it is cached)")
        observer.note(f"compiled in {parts.warm_up():.0f} s")
    observer.begin(recipe.epochs, parts.loader.num_steps, recipe.global_batch_size, tuple(record.metrics))
    with StopSignals(world) as signals:

        def stop_if_told() -> None:
            if signals.received is not None:
                raise Interrupted(signals.received, f"{record.describe()}; {record.remedy()}")

        try:
            with world.peers_needed():
                with record:
                    if world.is_main:
                        resumed_at = None if checkpoint is None else first_epoch
                        runs.write_config(run_dir, settings.as_config(), resumed_at=resumed_at)
                    for epoch in range(first_epoch, recipe.epochs):
                        metrics = _train_epoch(parts, epoch, record, observer, stop_if_told)
                        record.finish_epoch(metrics)
                        observer.epoch(metrics)
                        if epoch + 1 < recipe.epochs:
                            stop_if_told()
                signals.answer = "finishing the evaluation"
                observer.note("evaluating on the test split")
                return _finish(record, parts, run_dir)
        except LostPeerError as error:
            stop_if_told()  # it died of the same signal
            raise FastcifarError(f"{error}: {record.describe()}; {record.remedy()}") from error


def _train_epoch(
    parts: Parts, epoch: int, record: Record, observer: Observer, stop_if_told: Callable[[], None]
) -> dict[str, Any]:
    """Train for an epoch and validate; returns its metrics."""
    trainer, loader, recipe, start = parts.trainer, parts.loader, parts.settings.recipe, time.perf_counter()
    lr = trainer.optimizer.param_groups[0]["lr"]

    def on_step(step: int) -> None:
        observer.step(epoch, step)
        stop_if_told()

    train_loss, train_accuracy = trainer.train_epoch(loader, epoch, on_step)
    train_seconds = parts.world.maximum(time.perf_counter() - start)
    val_loss, val_accuracy = loss_and_accuracy(parts.logits(parts.val), parts.val.labels)
    if not math.isfinite(train_loss + val_loss):
        bad_step = trainer.first_bad_step()
        where = "the validation" if bad_step is None else f"step {bad_step + 1}"
        raise FastcifarError(
            f"the loss is no finite number any more in {where} of epoch {epoch + 1}: {record.describe()}"
        )
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "lr": lr,
        "img_per_s": loader.num_steps * recipe.global_batch_size / train_seconds,
        "seconds": parts.world.maximum(time.perf_counter() - start),
    }


def _finish(record: Record, parts: Parts, run_dir: Path) -> dict[str, Any]:
    """Test the last weights and the best ones, and write predictions by the best, charts and results."""
    trainer, test = parts.trainer, parts.test

    def evaluate(metrics: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        logits = parts.logits(test)
        loss, accuracy = loss_and_accuracy(logits, test.labels)
        augmented = loss_and_accuracy(parts.logits(test, augmented=True), test.labels)[1]
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
    results = {
        "best": best,
        "last": last,
        "num_test_images": len(test.labels),
        # Val and test together are the official 10,000 test images, of which others report; both count alike.
        "val_and_test_accuracy": (last["val_accuracy"] + last["test_accuracy"]) / 2,
        "img_per_s": statistics.median(metrics["img_per_s"] for metrics in record.metrics),
        "seconds": record.seconds,
    }
    if parts.world.is_main:
        from fastcifar.results.charts import write_charts  # a second for matplotlib, which no step needs

        labels = test.labels.cpu().numpy().astype(np.uint8)
        runs.write_predictions(run_dir, runs.Predictions(test.images.cpu().numpy(), labels, logits.cpu().numpy()))
        write_charts(run_dir)
        runs.write_results(run_dir, results)  # last: with it the run is finished
    return results
