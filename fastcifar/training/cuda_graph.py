"""Training steps recorded once as a CUDA graph, then replayed: the host issues one launch instead of hundreds."""

import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from fastcifar.errors import reason

_WARM_UPS = 3  # on a separate stream, as torch's notes on CUDA graphs require


class CudaGraphStep:
    """Replays `run()`, one step at a time or several in one graph.

    Recording calls `run` three times. The caller must undo the changes of these calls in place, because the graph holds
    the address of every tensor that `run` uses. Captured operations are not executed.

    Args:
        run: a step on tensors with fixed addresses and shapes on a CUDA device, which never waits for the device.
        steps_per_graph: the number of steps that one launch may contain.

    Raises:
        RuntimeError: `run` does something that cannot be captured.
    """

    def __init__(self, run: Callable[[], None], steps_per_graph: int = 1) -> None:
        stream, former = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(former)
        try:
            # Autograd remembers the stream on which it first used a weight, so warm-up and capture must share a stream.
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            self._one = self._capture(run, 1, stream)
            self._several = self._one if steps_per_graph == 1 else self._capture(run, steps_per_graph, stream)
        finally:
            torch.cuda.set_stream(former)  # torch 2.11 leaves the other stream current when a capture fails
            former.wait_stream(stream)
        self._steps_per_graph, self._num_ahead = steps_per_graph, 0

    @staticmethod
    def _capture(run: Callable[[], None], num_steps: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's watchdog, the checkpoint writer) may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(num_steps):
                run()
        return graph

    def begin_epoch(self) -> None:
        """Forget steps that were issued ahead in an epoch that was left early."""
        self._num_ahead = 0

    def step(self, num_left: int) -> None:
        """Issue the next step, unless an earlier launch has done so.

        Args:
            num_left: the number of remaining steps in the epoch, including this one.
        """
        if self._num_ahead == 0:
            fits = num_left >= self._steps_per_graph
            (self._several if fits else self._one).replay()
            self._num_ahead = self._steps_per_graph if fits else 1
        self._num_ahead -= 1


def try_capture(capture: Callable[[], CudaGraphStep]) -> tuple[CudaGraphStep | None, str | None]:
    """A graph, or None and why it cannot be captured.

    Raises:
        torch.OutOfMemoryError: the device has too little memory, so doing without a graph would not help.
    """
    try:
        return capture(), None
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        cause: BaseException = error
        while cause.__context__ is not None:  # the end of an invalid capture raises another error
            cause = cause.__context__
        where = traceback.extract_tb(cause.__traceback__)[-1]
        return None, f"{reason(cause)}, in {Path(where.filename).name}:{where.lineno}"
