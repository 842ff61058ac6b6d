"""Callbacks of a run: the base class of a progress view, a notebook's plot or a logger."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.errors import one_line

if TYPE_CHECKING:  # so that importing the class does not import numpy
    from fastcifar.results.records import EpochMetrics, Results


class Callback:
    """Called as a run proceeds; this base class does nothing. Override the methods of interest."""

    def on_message(self, line: str) -> None:
        """One line on what happens next."""

    def on_warning(self, line: str) -> None:
        """One line about a failure that does not stop the run."""

    def on_run_begin(self, run_dir: Path, config: dict[str, Any]) -> None:
        """The run's directory was created or reopened.

        Args:
            run_dir: the directory.
            config: the settings, as in `config.json`.
        """

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: "Sequence[EpochMetrics]"
    ) -> None:
        """Training begins.

        Args:
            num_epochs: the number of epochs of the whole run.
            num_steps: the number of steps per epoch.
            batch_size: images per step, over all ranks.
            finished: for a resumed run, the metrics of the epochs that are already finished.
        """

    def on_step_end(self, epoch: int, step: int) -> None:
        """A step was issued; `step` is the last finished step, on a GPU an earlier one. Both numbers count from 0."""

    def on_epoch_end(self, metrics: "EpochMetrics") -> None:
        """An epoch ended; `metrics` is its line of `metrics.jsonl`."""

    def on_train_end(self, results: "Results") -> None:
        """The run is finished, with these results. Not called for a run that is stopped."""


class Callbacks(Callback):
    """A view and loggers as one callback. A logger that raises is no longer called, and the view says so.

    Args:
        view: its errors end the run, as they would alone.
        loggers: their errors do not end the run.
    """

    def __init__(self, view: Callback, *loggers: Callback) -> None:
        self._view, self._loggers = view, list(loggers)

    def _tell(self, method: str, *arguments: Any) -> None:
        getattr(self._view, method)(*arguments)
        for logger in tuple(self._loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # another package may raise anything
                self._loggers.remove(logger)
                reason = f"{type(error).__name__}: {error}"[:200]
                self._view.on_warning(f"{type(logger).__name__} is no longer called: {one_line(reason)}")

    def on_message(self, line: str) -> None:
        """Tell all."""
        self._tell("on_message", line)

    def on_warning(self, line: str) -> None:
        """Tell all."""
        self._tell("on_warning", line)

    def on_run_begin(self, run_dir: Path, config: dict[str, Any]) -> None:
        """Tell all."""
        self._tell("on_run_begin", run_dir, config)

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: "Sequence[EpochMetrics]"
    ) -> None:
        """Tell all."""
        self._tell("on_train_begin", num_epochs, num_steps, batch_size, finished)

    def on_step_end(self, epoch: int, step: int) -> None:
        """Tell all."""
        self._tell("on_step_end", epoch, step)

    def on_epoch_end(self, metrics: "EpochMetrics") -> None:
        """Tell all."""
        self._tell("on_epoch_end", metrics)

    def on_train_end(self, results: "Results") -> None:
        """Tell all."""
        self._tell("on_train_end", results)
