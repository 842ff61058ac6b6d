"""What a run tells while it trains: the base class of a progress view, a notebook's plot or a logger."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.errors import one_line

if TYPE_CHECKING:  # so that the class costs a script no import of numpy
    from fastcifar.results.records import EpochMetrics, Results


class Callback:
    """Called as a run proceeds; this base class does nothing. Override the methods of interest."""

    def on_message(self, line: str) -> None:
        """One line on what happens next."""

    def on_warning(self, line: str) -> None:
        """One line on something that failed, and that the run goes on without."""

    def on_run_begin(self, run_dir: Path, config: dict[str, Any]) -> None:
        """The run has its directory.

        Args:
            run_dir: the directory, there already.
            config: the settings, as in `config.json`.
        """

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: "Sequence[EpochMetrics]"
    ) -> None:
        """Training begins.

        Args:
            num_epochs: of the whole run.
            num_steps: of each epoch.
            batch_size: images a step, over all ranks.
            finished: of a resumed run, the metrics of the epochs that are finished already.
        """

    def on_step_end(self, epoch: int, step: int) -> None:
        """A step was issued, and `step` is the last that is finished: on a GPU an earlier one. Both count from 0."""

    def on_epoch_end(self, metrics: "EpochMetrics") -> None:
        """An epoch ended; its line of `metrics.jsonl`."""

    def on_train_end(self, results: "Results") -> None:
        """The run is finished, with these results. Not called for a run that is stopped."""


class Callbacks(Callback):
    """A view and loggers as one callback. A logger that raises is left out from then on, and the view says so.

    Args:
        view: whose errors end the run, as they would alone.
        loggers: which are no reason to lose a run.
    """

    def __init__(self, view: Callback, *loggers: Callback) -> None:
        self._view, self._loggers = view, list(loggers)

    def _tell(self, method: str, *arguments: Any) -> None:
        getattr(self._view, method)(*arguments)
        for logger in tuple(self._loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # whatever another package raises
                self._loggers.remove(logger)
                reason = f"{type(error).__name__}: {error}"[:200]
                self._view.on_warning(f"{type(logger).__name__} is left out from here on: {one_line(reason)}")

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
