"""A contender in a separate process, so that contenders do not influence each other.

On a CPU this matters: earlier use of a process's allocator decides whether a step's memory is mapped again.
"""

import multiprocessing
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from baselines import CONTENDERS, Contender
from measure import synchronise

from fastcifar.data.folder import Split
from fastcifar.recipes import Recipe

_WARM_STEPS = 1  # of a round on a CPU
_PATIENCE_S = 300.0  # stock FFCV waits forever for a thread that failed


@dataclass(frozen=True)
class Timing:
    """One round of one contender."""

    img_per_s: float
    waiting: float  # share of the time in which the device had no batch to train on
    peak_memory_gib: float  # of the device on a GPU, of the process on a CPU


@dataclass(frozen=True)
class Task:
    """The task of a contender."""

    recipe: Recipe
    split: Split
    data_dir: Path
    device: torch.device
    precision: str
    num_workers: int


class IsolatedContender:
    """A process that builds a contender and times its rounds on request; it sleeps between them."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name))
        self._process.start()
        theirs.close()  # so that the end of the process is noticed here

    def begin(self, task: Task) -> None:
        """Start building; `wait` waits for it."""
        self._send(task)

    def wait(self) -> Any:
        """Wait for the answer to the last request.

        Raises:
            RuntimeError: the request failed.
        """
        if not self._connection.poll(_PATIENCE_S):
            raise RuntimeError(f"{self._name}: no answer in {_PATIENCE_S} s")
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"{self._name}: its process died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def time_round(self, num_steps: int | None) -> Timing:
        """Train for `num_steps` steps, or for an epoch."""
        self._send(num_steps)
        timing: Timing = self.wait()
        return timing

    def close(self) -> None:
        """End the process, by force if it does not end by itself; a second call does nothing."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _send(self, order: Any) -> None:
        try:
            self._connection.send(order)
        except OSError:
            raise RuntimeError(f"{self._name}: its process died") from None


def _serve(connection: Connection, name: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # a DataLoader's default; a spawned process has its own
    contender: Contender | None = None
    task: Task | None = None
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(order, Task):
                task, contender = order, None  # free the former contender's memory before building the next
                torch._dynamo.reset()
                contender = CONTENDERS[name].build(
                    task.recipe,
                    task.split,
                    task.data_dir,
                    task.device,
                    precision=task.precision,
                    num_workers=task.num_workers,
                )
                answer: Any = True
            else:
                assert contender is not None
                assert task is not None
                answer = time_epoch(contender, task.recipe.global_batch_size, task.device, order)
                contender.pop_loss()
        except Exception as error:
            answer = f"{name}: {error!r}"
        connection.send(answer)


def time_epoch(contender: Contender, batch_size: int, device: torch.device, num_steps: int | None) -> Timing:
    """Train for an epoch, or for a few steps of one.

    On a GPU the wait for data is the time on the device's clock from the end of a step until its next batch is there;
    on a CPU it is the time that the training thread spends on getting the batch.
    """
    is_cuda = device.type == "cuda"
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    waiting = 0.0
    steps = 0
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # its peak is reset
    with closing(contender.batches()) as batches:
        if num_steps is not None:
            for _ in range(_WARM_STEPS):
                contender.step(*next(batches))
        synchronise(device)
        start = time.perf_counter()
        while steps != num_steps:
            if is_cuda:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
            began = time.perf_counter()
            batch = next(batches, None)
            waiting += time.perf_counter() - began
            if batch is None:
                break
            if is_cuda:
                after.record()
                marks.append((before, after))
            contender.step(*batch)
            steps += 1
        synchronise(device)
        seconds = time.perf_counter() - start
    if is_cuda:
        waiting = sum(before.elapsed_time(after) for before, after in marks) / 1e3
        peak_bytes = torch.cuda.max_memory_reserved(device)  # a graph's memory never counts as allocated
    else:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        peak_bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return Timing(steps * batch_size / seconds, waiting / seconds, peak_bytes / 2**30)
