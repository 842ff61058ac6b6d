"""A training run: data in, a run directory with checkpoints, metrics, results and charts out."""

import contextlib
import math
import shlex
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcifar.data.folder import is_prepared, is_untouched, load_val_and_test
from fastcifar.data.prepare import prepare_data
from fastcifar.distributed import LostPeerError, World, init_distributed
from fastcifar.errors import ArgumentError, DivergedError, FastcifarError, Interrupted, reason
from fastcifar.kernels.winograd import why_unavailable
from fastcifar.pipeline.loader import build_loader
from fastcifar.results.records import (
    EpochMetrics,
    Predictions,
    Results,
    Scores,
    write_config,
    write_predictions,
    write_results,
)
from fastcifar.results.run_dir import check_unused, interrupted_run_dir, new_run_dir, run_state
from fastcifar.training.callbacks import Callback
from fastcifar.training.checkpoint import BestEpoch, Checkpointer, LastCheckpoint, read_last
from fastcifar.training.convolution import TORCH
from fastcifar.training.device import configured_device, is_out_of_memory
from fastcifar.training.evaluate import CompiledPass, EvalSet, compute_logits, loss_and_accuracy
from fastcifar.training.settings import Settings, restore_settings
from fastcifar.training.signals import StopSignals
from fastcifar.training.trainer import Trainer


def train_model(
    settings: Settings, data_dir: Path, out: Path | None = None, callback: Callback | None = None
) -> tuple[Path, Results]:
    """Train with a recipe, evaluate, and fill a run directory.

    Under torchrun every process calls this with the settings it resolved; rank 0 writes the files and calls the
    callback. If torchrun restarts all processes after a failure, the run continues from its last checkpoint.

    Args:
        settings: from `settings.resolve_settings`.
        data_dir: the data folder, which is prepared if it is missing; each machine has its own, or all share one.
        out: the run directory, which must be empty or missing; None for `runs/<recipe>-<time>`.
        callback: its methods are called as the run proceeds; None for none.

    Returns:
        The run directory and the results, which are also in its `results.json`.

    Raises:
        FastcifarError: the data is damaged, a file cannot be written, the device has too little memory, or the loss is
            not finite.
        Interrupted: SIGINT, SIGTERM or SIGHUP was received; the last finished epoch is saved.
    """
    with init_distributed() as world, contextlib.ExitStack() as stack:
        callback = callback if callback and world.is_main else Callback()
        if out is not None:
            is_restarted = world.all_reduce_max(world.num_restarts) > 0
            if is_restarted and world.broadcast(run_state(out) if world.is_main else None) != "new":
                return out, resume_training(out, data_dir, callback)[1]
            if world.is_main:
                check_unused(out)
        stack.enter_context(_device_of(settings))
        settings = with_usable_convolution(settings, world, callback)
        _prepare_everywhere(data_dir, world, callback)
        run = Run(settings, data_dir, world, callback)
        new_dir = new_run_dir(out, settings.recipe.name)
        run_dir = world.broadcast(stack.enter_context(new_dir) if world.is_main else None)
        return run_dir, run.train(run_dir, None)


def resume_training(
    run_dir: Path, data_dir: Path | None = None, callback: Callback | None = None
) -> tuple[Settings, Results]:
    """Continue a stopped run from its last checkpoint, with its settings.

    On a CPU of the same kind with the same torch, the weights and metrics equal, to the last bit, those of an
    uninterrupted run.

    Args:
        run_dir: the directory of an unfinished run.
        data_dir: a folder that `prepare` filled; None for the one the run was started with.
        callback: its methods are called as the run proceeds; None for none.

    Returns:
        The run's settings and its results.

    Raises:
        FastcifarError: as `train_model`, or the run has diverged or cannot be resumed here.
        Interrupted: as `train_model`.
    """
    with init_distributed() as world, contextlib.ExitStack() as stack:
        callback = callback if callback and world.is_main else Callback()
        if world.is_main:
            stack.enter_context(interrupted_run_dir(run_dir))
        checkpoint = world.broadcast(read_last(run_dir) if world.is_main else None)
        try:
            settings = restore_settings(checkpoint.settings)
        except FastcifarError as error:
            raise FastcifarError(f"cannot resume {run_dir}: {error}") from error
        if data_dir is None:
            data_dir = Path(checkpoint.data_dir)
            if not is_prepared(data_dir):
                raise ArgumentError("data_dir", f"{data_dir} no longer exists: give the new path of the run's data")
        stack.enter_context(_device_of(settings))
        settings = with_usable_convolution(settings, world, callback)
        return settings, Run(settings, data_dir, world, callback).train(run_dir, checkpoint)


def _device_of(settings: Settings) -> contextlib.AbstractContextManager[None]:
    return configured_device(
        settings.device,
        description=settings.device_name,
        num_threads=settings.num_threads,
        deterministic=settings.deterministic,
    )


def with_usable_convolution(settings: Settings, world: World, callback: Callback) -> Settings:
    """The settings with rank 0's convolutions on every rank: torch's, with a message, if others cannot be used."""
    problem = None if settings.convolution == TORCH else why_unavailable()
    if problem is not None:
        callback.on_message(f"using torch's convolutions, which are slower than Winograd's: {problem}")
    return replace(settings, convolution=world.broadcast(TORCH if problem else settings.convolution))


def _prepare_everywhere(data_dir: Path, world: World, callback: Callback) -> None:
    """Prepare missing data: rank 0 for all that share its folder, then one rank on every other machine."""
    for is_mine in (world.is_main, world.local_rank == 0):
        if is_mine and is_untouched(data_dir):
            prepare_data(data_dir, report=callback.on_message)
        world.barrier()


class Run:
    """The parts of a run, and its training loop.

    Args:
        settings: the run's settings.
        data_dir: a folder that `prepare` filled.
        world: the world that the settings were resolved for.
        callback: its methods are called as the run proceeds.

    Attributes:
        loader: loads the training batches, this rank's share of each.
        val: the validation images.
        test: the test images.
        trainer: trains the model.
    """

    def __init__(self, settings: Settings, data_dir: Path, world: World, callback: Callback) -> None:
        assert settings.world_size == world.size
        device, recipe = torch.device(settings.device), settings.recipe
        callback.on_message(f"reading and checking {data_dir}")
        self.settings, self.data_dir, self.world, self.callback = settings, data_dir, world, callback
        self.loader = build_loader(
            settings.loader,
            data_dir,
            device,
            recipe,
            num_images=settings.num_train_images,
            num_workers=settings.num_workers,
            world=world,
        )
        self.val, self.test = (
            EvalSet(split, settings.num_eval_images, device, recipe) for split in load_val_and_test(data_dir)
        )
        self.trainer = Trainer(
            recipe,
            device,
            precision=settings.precision,
            compile=settings.compile,
            world=world,
            sync_bn=settings.sync_bn,
            convolution=settings.convolution,
        )
        self._compiled_pass = CompiledPass(device) if settings.compile else None

    def train(self, run_dir: Path, checkpoint: LastCheckpoint | None) -> Results:
        """Train the remaining epochs, then test.

        Args:
            run_dir: the folder to write to; locked by the caller.
            checkpoint: the checkpoint to resume from, from `read_last`; None for a new run.

        Returns:
            The results.
        """
        recipe = self.settings.recipe
        self.callback.on_run_begin(run_dir, self.settings.as_config())
        checkpointer = Checkpointer(
            self.settings, self.data_dir, run_dir, self.trainer, checkpoint, writes=self.world.is_main
        )
        first_epoch = len(checkpointer.metrics)
        if self.settings.compile:
            self.callback.on_message("compiling the step and the evaluation (about a minute, less when it is cached)")
            self.callback.on_message(f"compiled in {self.compile():.0f} s")
            for what, compiled in (("step", self.trainer), ("evaluation", self._compiled_pass)):
                if compiled is not None and compiled.capture_failure is not None:
                    self.callback.on_message(
                        f"the {what} is compiled, but not captured as a CUDA graph ({compiled.capture_failure})"
                    )
        self.callback.on_train_begin(
            recipe.epochs, self.loader.num_steps, recipe.global_batch_size, tuple(checkpointer.metrics)
        )
        with StopSignals(self.world) as signals, self._explain_lost_rank(checkpointer, signals):
            with checkpointer:
                if self.world.is_main:
                    resumed_at = None if checkpoint is None else first_epoch
                    write_config(
                        run_dir,
                        self.settings.as_config(),
                        captured=self.trainer.is_captured,
                        capture_failure=self.trainer.capture_failure,
                        resumed_at=resumed_at,
                    )
                for epoch in range(first_epoch, recipe.epochs):
                    metrics = self._train_epoch(epoch, checkpointer, signals)
                    checkpointer.finish_epoch(metrics)
                    self.callback.on_epoch_end(metrics)
                    if epoch + 1 < recipe.epochs:
                        _stop_if_requested(signals, checkpointer)
            self.trainer.release_graph()
            signals.answer = "finishing the evaluation"
            self.callback.on_message("evaluating on the test split")
            results = self._finish(checkpointer, run_dir)
            self.callback.on_train_end(results)
            return results

    @contextlib.contextmanager
    def _explain_lost_rank(self, checkpointer: Checkpointer, signals: StopSignals) -> Iterator[None]:
        """Say what is saved when another rank is lost."""
        try:
            with self.world.peers_needed():
                yield
        except LostPeerError as error:
            _stop_if_requested(signals, checkpointer)  # the other rank ended by the same signal
            raise FastcifarError(f"{error}: {checkpointer.describe()}; {checkpointer.remedy()}") from error

    def _train_epoch(self, epoch: int, checkpointer: Checkpointer, signals: StopSignals) -> EpochMetrics:
        """Train for an epoch and validate."""
        trainer, loader, start = self.trainer, self.loader, time.perf_counter()
        lr = trainer.optimizer.param_groups[0]["lr"]

        def on_step(num_finished: int) -> None:
            if num_finished:
                self.callback.on_step_end(epoch, num_finished - 1)
            _stop_if_requested(signals, checkpointer)

        train_loss, train_accuracy = trainer.train_epoch(loader, epoch, on_step)
        train_seconds = self.world.all_reduce_max(time.perf_counter() - start)
        val_loss, val_accuracy = loss_and_accuracy(self.logits(self.val), self.val.labels)
        if not math.isfinite(train_loss + val_loss):
            bad_step = trainer.first_bad_step()
            where = "the validation" if bad_step is None else f"step {bad_step + 1}"
            problem = f"the loss is not finite in {where} of epoch {epoch + 1}"
            checkpointer.mark_diverged(problem)
            raise DivergedError(problem, checkpointer.describe())
        return EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=lr,
            img_per_s=loader.num_steps * self.settings.recipe.global_batch_size / train_seconds,
            seconds=self.world.all_reduce_max(time.perf_counter() - start),
        )

    def _finish(self, checkpointer: Checkpointer, run_dir: Path) -> Results:
        """Test the last and the best weights; write predictions of the best weights, results and charts."""
        last, logits = self._test(checkpointer.metrics[-1])
        best = last
        assert checkpointer.best is not None
        if checkpointer.best.epoch != last.epoch:
            self.trainer.model.load_state_dict(checkpointer.best.model)
            best, logits = self._test(checkpointer.best)
        results = Results(
            best=best,
            last=last,
            num_test_images=len(self.test.labels),
            # Val and test together are the official 10,000 test images, on which others report; both count equally.
            test10k_accuracy=(last.val_accuracy + last.test_accuracy) / 2,
            img_per_s=statistics.median(metrics.img_per_s for metrics in checkpointer.metrics),
            seconds=checkpointer.seconds,
        )
        if self.world.is_main:
            labels = self.test.labels.cpu().numpy().astype(np.uint8)
            write_predictions(run_dir, Predictions(self.test.images.cpu().numpy(), labels, logits.cpu().numpy()))
            write_results(run_dir, results)  # this marks the run as finished
            self._draw(run_dir)
        return results

    def _draw(self, run_dir: Path) -> None:
        """Draw the charts; if matplotlib or its environment is broken, the run is finished without them."""
        try:
            from fastcifar.results.charts import write_charts  # importing matplotlib takes a second

            write_charts(run_dir)
        except Exception as error:
            again = f"fastcifar charts {shlex.quote(str(run_dir))}"
            self.callback.on_warning(f"the charts could not be drawn ({reason(error)}): `{again}` draws them again")

    def _test(self, epoch: EpochMetrics | BestEpoch) -> tuple[Scores, Tensor]:
        """The scores of that epoch's model, and its logits of the clean images."""
        logits = self.logits(self.test)
        loss, accuracy = loss_and_accuracy(logits, self.test.labels)
        augmented = loss_and_accuracy(self.logits(self.test, augmented=True), self.test.labels)[1]
        return Scores(epoch.epoch, epoch.val_accuracy, loss, accuracy, augmented), logits

    def logits(self, images: EvalSet, *, augmented: bool = False) -> Tensor:
        """The model's logits, `(N, 10)` float32."""
        trainer = self.trainer
        return compute_logits(
            trainer.model,
            images.images,
            mean=trainer.mean,
            std=trainer.std,
            precision=trainer.precision,
            coeffs=images.coeffs if augmented else None,
            compiled=self._compiled_pass,
            world=self.world,
        )

    def compile(self) -> float:
        """Compile the gather, the step and the evaluation; returns the seconds it took.

        Raises:
            FastcifarError: torch.compile failed.
        """
        start = time.perf_counter()
        try:
            with self.world.peers_needed():
                with contextlib.closing(self.loader.epoch(0)) as steps:
                    next(steps)
                    self.trainer.warm_up(self.loader)
                self.logits(self.val)
        except FastcifarError:
            raise
        except Exception as error:  # torch's code and a compiler that fails or is missing raise many types
            if is_out_of_memory(error):
                raise
            first_line = (str(error).strip().splitlines() or [repr(error)])[0][:200]
            raise FastcifarError(f"torch.compile failed ({first_line}): use compile=False (--no-compile)") from error
        return time.perf_counter() - start


def _stop_if_requested(signals: StopSignals, checkpointer: Checkpointer) -> None:
    if signals.received is not None:
        raise Interrupted(signals.received, f"{checkpointer.describe()}; {checkpointer.remedy()}")
