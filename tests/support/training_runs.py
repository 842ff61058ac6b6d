"""Tiny trainings in this process, and comparisons of two of them."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcifar.errors import Interrupted
from fastcifar.recipes import get_recipe
from fastcifar.results.records import (
    BEST_FILE,
    LAST_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    EpochMetrics,
    Results,
    read_predictions,
)
from fastcifar.training.callbacks import Callback
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.run import train_model
from fastcifar.training.settings import Settings, resolve_settings

_NOT_THE_RESULT = ("seconds", "img_per_s", "num_workers")


class Listener(Callback):
    """Records the calls; can interrupt the run at a step, or after an epoch."""

    def __init__(self) -> None:
        self.epochs: list[EpochMetrics] = []
        self.steps: list[tuple[int, int]] = []
        self.messages: list[str] = []
        self.stop_at: tuple[int, int] | None = None
        self.stop_after: int | None = None

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[EpochMetrics]
    ) -> None:
        self.begun = (num_epochs, num_steps, batch_size, len(finished))

    def on_step_end(self, epoch: int, step: int) -> None:
        self.steps.append((epoch, step))
        if self.stop_at == (epoch, step):
            os.kill(os.getpid(), signal.SIGINT)

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        self.epochs.append(metrics)
        if self.stop_after == metrics.epoch:
            os.kill(os.getpid(), signal.SIGINT)


def tiny_settings(recipe: str = "adam89", **choices: Any) -> Settings:
    defaults: dict[str, Any] = {"epochs": 3, "global_batch_size": 8, "device": "cpu", "precision": "fp32"}
    return resolve_settings(get_recipe(recipe), **(defaults | choices))


def run(data: Path, out: Path, listener: Listener | None = None, **choices: Any) -> Results:
    run_dir, results = train_model(tiny_settings(**choices), data, out, listener or Listener())
    assert run_dir == out
    return results


def interrupt(data: Path, out: Path, at: tuple[int, int], **choices: Any) -> None:
    """Train as `run` does, with Ctrl-C at a step of an epoch."""
    listener = Listener()
    listener.stop_at = at
    with pytest.raises(Interrupted):
        run(data, out, listener, **choices)


def without_timings(content: Any) -> Any:
    """The same content without values that depend on the clock."""
    if isinstance(content, dict):
        return {key: without_timings(value) for key, value in content.items() if key not in _NOT_THE_RESULT}
    return [without_timings(item) for item in content] if isinstance(content, list) else content


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    """Assert equality to the last bit, also of tensors."""
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    else:
        assert ours == theirs, where


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """Assert that every file of a finished run equals the reference's, except for timings."""
    for name in (LAST_FILE, BEST_FILE):
        ours, theirs = (without_timings(load_checkpoint(folder / name)) for folder in (run_dir, reference))
        assert_equal(ours, theirs, name)
    ours, theirs = (
        [without_timings(json.loads(line)) for line in (folder / METRICS_FILE).read_text().splitlines()]
        for folder in (run_dir, reference)
    )
    assert [line["epoch"] for line in ours] == list(range(len(ours)))
    assert ours == theirs
    ours, theirs = (without_timings(json.loads((folder / RESULTS_FILE).read_text())) for folder in (run_dir, reference))
    assert ours == theirs
    ours, theirs = (read_predictions(folder) for folder in (run_dir, reference))
    assert np.array_equal(ours.logits, theirs.logits)
    names = sorted(path.relative_to(run_dir) for path in run_dir.rglob("*"))
    assert names == sorted(path.relative_to(reference) for path in reference.rglob("*"))
