"""Trainings that are killed with SIGKILL, then resumed; each must end like an uninterrupted one.

    python tests/programs/killed_runs.py DATA WORK_DIR sync 3 17 ...   killed as the 3rd, 17th ... file is written
    python tests/programs/killed_runs.py DATA WORK_DIR time 50         killed at 50 random moments

A separate process in which torch never starts threads, so that each training can be a quick fork.
Prints a line for every kill; a failed check is an AssertionError.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from support.tiny_world import tiny_world
from support.training_runs import assert_same_run

from fastcifar import files
from fastcifar.files import is_leftover
from fastcifar.recipes import get_recipe
from fastcifar.results.charts import write_charts
from fastcifar.results.records import LAST_FILE, METRICS_FILE, RESULTS_FILE
from fastcifar.training import checkpoint
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.run import resume_training, train_model
from fastcifar.training.settings import resolve_settings

NUM_EPOCHS = 3


def forked(work: Callable[[], object], kill_after_s: float | None = None) -> int:
    """Run `work` in a fork; returns its exit code, or the negative number of the signal that killed it."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            print(f"in the fork: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def train_new_run(data: Path, run_dir: Path) -> None:
    """The training under test."""
    recipe = get_recipe("sgd92")
    settings = resolve_settings(recipe, epochs=NUM_EPOCHS, global_batch_size=8, device="cpu", precision="fp32")
    train_model(settings, data, run_dir)


def count_syncs(kill_at: int | None) -> list[int]:
    """Count the files that this process writes to the disk, and kill it at the given one."""
    calls: list[int] = []
    real_sync = files.sync

    def sync(path: Path) -> None:
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        real_sync(path)

    files.sync = sync
    return calls


def finish(data: Path, run_dir: Path) -> str:
    """Do what a user does after a kill; returns a description of it."""
    if (run_dir / RESULTS_FILE).exists():  # but perhaps not the charts
        assert forked(lambda: write_charts(run_dir)) == 0
        return "was finished"
    metrics = run_dir / METRICS_FILE
    if metrics.exists():  # whole lines, each epoch once, at any moment
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(len(lines)))
    if not (run_dir / LAST_FILE).exists():
        assert all(is_leftover(path) for path in run_dir.iterdir()) if run_dir.exists() else True
        assert forked(lambda: train_new_run(data, run_dir)) == 0
        return "started again"
    num_epochs = load_checkpoint(run_dir / LAST_FILE)["num_epochs"]
    assert forked(lambda: resume_training(run_dir)) == 0
    return f"resumed after epoch {num_epochs}"


def main() -> None:
    """Kill and resume, by the command line."""
    data, work_dir, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)  # a fork of a process with more threads would never end
    reference = work_dir / "reference"
    start = time.monotonic()
    assert forked(lambda: train_new_run(data, reference)) == 0
    seconds = time.monotonic() - start
    generator = random.Random(7)
    moments = list(map(int, sys.argv[4:])) if mode == "sync" else range(int(sys.argv[4]))
    for number, moment in enumerate(moments):
        run_dir = work_dir / f"{mode}-{moment}"

        def work(run_dir: Path = run_dir, number: int = number, moment: int = moment) -> None:
            if number % 2 == 0:
                checkpoint.CHECKPOINT_INTERVAL_S = 0.0  # every epoch has a checkpoint, not only the first and the last
            if mode == "sync":
                count_syncs(moment)
            train_new_run(data, run_dir)

        kill_after_s = None if mode == "sync" else generator.uniform(0, seconds)
        ended = forked(work, kill_after_s)
        how = finish(data, run_dir)
        assert_same_run(run_dir, reference)
        when = f"at file {moment}" if mode == "sync" else f"after {kill_after_s:.3f} s"
        print(f"killed {when} ({ended}): {how}, equal", flush=True)
        if mode == "sync" and ended == 0:
            break  # beyond the last file


if __name__ == "__main__":
    with tiny_world(has_charts=True):
        main()
