"""A training run: data in, a run directory with checkpoints, metrics, results and charts out."""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcifar import runs
from fastcifar.augment import choose_subset
from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.evaluate import EvalSet, compute_logits, loss_and_accuracy
from fastcifar.host_memory import freed_memory_kept
from fastcifar.loader import EpochPlanner, Loader, ResidentLoader, StreamedLoader
from fastcifar.observer import Observer
from fastcifar.prepare import beton_path, load_train, load_val_and_test
from fastcifar.record import Record, read_last
from fastcifar.settings import Settings, restore_settings
from fastcifar.stop_signals import StopSignals
from fastcifar.trainer import Trainer


def train_model(
    settings: Settings, data_dir: Path, out: Path | None = None, observer: Observer | None = None
) -> tuple[Path, dict[str, Any]]:
    """Train by a recipe, evaluate, and fill a run directory.

    Args:
        settings: from `settings.resolve_settings`.
        data_dir: a folder that `prepare` filled.
        out: the run directory, which must not hold anything yet; None for `runs/<recipe>-<time>`.
        observer: is told how it goes; None for nobody.

    Returns:
        The run directory, and what its `results.json` holds.

    Raises:
        FastcifarError: the data is damaged, a file cannot be written, the device has too little memory, or the loss is
            no number any more.
        Interrupted: SIGINT or SIGTERM came; the last finished epoch is saved.
    """
    observer = observer or Observer()
    with _on_device(settings):
        parts = _Parts(settings, data_dir, observer)
        with runs.new_run_dir(out, settings.recipe.name) as run_dir:
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
    observer = observer or Observer()
    with runs.interrupted_run_dir(run_dir):
        checkpoint = read_last(run_dir)
        try:
            settings = restore_settings(checkpoint["settings"])
        except FastcifarError as error:
            raise FastcifarError(f"cannot resume {run_dir}: {error}") from error
        data_dir = Path(checkpoint["data_dir"]) if data_dir is None else data_dir
        with _on_device(settings):
            parts = _Parts(settings, data_dir, observer)
            return settings, _train(parts, data_dir, run_dir, observer, checkpoint)


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
        with freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext():
            yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise FastcifarError(
            f"{settings.device_name} has too little memory free: try a smaller --batch-size, or --loader streamed"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's allocator on the CPU has no exception type of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Parts:
    """What a run works with: the loader, the two splits to evaluate on, and the trainer."""

    def __init__(self, settings: Settings, data_dir: Path, observer: Observer) -> None:
        device = torch.device(settings.device)
        observer.note(f"reading and checking {data_dir}")
        self.settings = settings
        self.loader = _build_loader(settings, data_dir, device)
        self.val, self.test = (
            EvalSet(split, settings.eval_images, device, settings.recipe) for split in load_val_and_test(data_dir)
        )
        self.trainer = Trainer(settings.recipe, device, precision=settings.precision, compile=settings.compile)

    def logits(self, images: EvalSet, *, augmented: bool = False) -> Tensor:
        """The model's logits, `(N, 10)` float32."""
        trainer = self.trainer
        return compute_logits(
            trainer.model,
            images.images,
            mean=trainer.mean,
            std=trainer.std,
            precision=trainer.precision,
            geometry=images.geometry if augmented else None,
            compile=self.settings.compile,
        )


def _train(
    parts: _Parts, data_dir: Path, run_dir: Path, observer: Observer, checkpoint: dict[str, Any] | None
) -> dict[str, Any]:
    """Train what is left of a run; returns what its `results.json` holds."""
    settings, trainer, loader, val = parts.settings, parts.trainer, parts.loader, parts.val
    recipe = settings.recipe
    record = Record(settings, data_dir, run_dir, trainer, checkpoint)
    first_epoch = len(record.metrics)
    if settings.compile:
        observer.note("compiling the step and the evaluation (about a minute, less when it is cached)")
        observer.note(f"compiled in {_warm_up(parts):.0f} s")
    observer.begin(recipe.epochs, loader.num_steps, recipe.batch_size)
    with StopSignals() as signals:

        def stop_if_told() -> None:
            if signals.received is not None:
                raise Interrupted(signals.received, f"{record.describe()}; {record.remedy()}")

        with record:
            runs.write_config(run_dir, settings.as_config(), resumed_at=None if checkpoint is None else first_epoch)
            for epoch in range(first_epoch, recipe.epochs):
                epoch_start = time.perf_counter()
                lr = trainer.optimizer.param_groups[0]["lr"]

                def on_step(step: int, epoch: int = epoch) -> None:
                    observer.step(epoch, step)
                    stop_if_told()

                train_loss, train_accuracy = trainer.train_epoch(loader, epoch, on_step)
                train_seconds = time.perf_counter() - epoch_start
                val_loss, val_accuracy = loss_and_accuracy(parts.logits(val), val.labels)
                if not math.isfinite(train_loss + val_loss):
                    bad_step = trainer.first_bad_step()
                    where = "the validation" if bad_step is None else f"step {bad_step + 1}"
                    raise FastcifarError(
                        f"the loss is no finite number any more in {where} of epoch {epoch + 1}: {record.describe()}"
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
        results = _evaluate_checkpoints(record, parts, run_dir)
        from fastcifar.charts import draw_charts  # a second for matplotlib, which no step needs

        results["seconds"] = record.seconds
        draw_charts(run_dir)
        runs.write_results(run_dir, results)  # last: with it the run is finished
    return results


def _warm_up(parts: _Parts) -> float:
    """Compile everything; returns the seconds it took."""
    start = time.perf_counter()
    try:
        with contextlib.closing(parts.loader.epoch(0)) as batches:
            next(batches)
        parts.trainer.warm_up()
        parts.logits(parts.val)
    except FastcifarError:
        raise
    except Exception as error:  # whatever a compiler, its absence, or torch's own code raises
        if _is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
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


def _evaluate_checkpoints(record: Record, parts: _Parts, run_dir: Path) -> dict[str, Any]:
    """The test split by the last weights and by the best ones, clean and augmented; predictions by the best."""
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
