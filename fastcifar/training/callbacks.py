"""What a run tells while it trains: the base class of a progress view, a notebook's plot or a logger."""

from collections.abc import Sequence
from typing import Any


class Callback:
    """Called as a run proceeds; this base class does nothing. Override the methods of interest."""

    def on_message(self, line: str) -> None:
        """One line on what happens next."""

    def on_warning(self, line: str) -> None:
        """One line on something that failed, and that the run goes on without."""

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[dict[str, Any]]
    ) -> None:
        """Training begins.

        Args:
            num_epochs: of the whole run.
            num_steps: of each epoch.
            batch_size: images a step, over all ranks.
            finished: of a resumed run, the metrics of the epochs that are finished already.
        """

    def on_step_end(self, epoch: int, step: int) -> None:
        """A step was issued; both count from 0. On a GPU it may still be running."""

    def on_epoch_end(self, metrics: dict[str, Any]) -> None:
        """An epoch ended; its line of `metrics.jsonl`."""
