"""Who watches a run: the base of what a console, a notebook or a service makes of it."""

from collections.abc import Sequence
from typing import Any


class Observer:
    """Is told how a run goes; this one keeps silent. Derive from it what wants to listen."""

    def note(self, line: str) -> None:
        """One line on what happens next."""

    def begin(self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[dict[str, Any]]) -> None:
        """Training begins: so many epochs of so many steps; of a resumed run, the metrics of those finished before."""

    def step(self, epoch: int, step: int) -> None:
        """A step was issued; both count from 0."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch ended; its line of `metrics.jsonl`."""
