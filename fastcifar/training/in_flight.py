"""Tracks which of the steps that were issued to the device are finished."""

import time
from collections import deque

import torch

from fastcifar.distributed import ALONE, LostPeerError, World

_MAX_IN_FLIGHT = 64  # about a tenth of a second: a run stops, and shows where it is, within that time
_PATIENCE_S = 300.0  # NCCL's watchdog may not see a collective that is replayed in a CUDA graph
_POLL_S = 1e-4


class StepsInFlight:
    """Counts an epoch's issued and finished steps. On a CPU a step is finished when it returns.

    Args:
        device: the device that the steps are issued to.
        world: a step may wait for its other ranks.
    """

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._is_cuda, self._world = device.type == "cuda", world
        self._events: deque[torch.cuda.Event] = deque()  # one for each step that may not be finished
        self._num_issued = 0

    def begin_epoch(self) -> None:
        """Start counting from 0."""
        self._events.clear()
        self._num_issued = 0

    @property
    def num_issued(self) -> int:
        """The number of steps that were issued in this epoch."""
        return self._num_issued

    @property
    def num_finished(self) -> int:
        """The number of steps in this epoch that are known to be finished; does not wait for the device."""
        while self._events and self._events[0].query():
            self._events.popleft()
        return self._num_issued - len(self._events)

    def add(self) -> None:
        """Count an issued step; wait if too many are not finished.

        Raises:
            LostPeerError: the device does not make progress, and there are other ranks.
        """
        self._num_issued += 1
        if self._is_cuda:
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            self._wait(_MAX_IN_FLIGHT)

    def finish(self) -> None:
        """Wait until every step is finished.

        Raises:
            LostPeerError: as `add`.
        """
        self._wait(0)

    def _wait(self, num_left: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self._num_issued - self.num_finished > num_left:
            if self._world.size > 1 and time.monotonic() > deadline:
                raise LostPeerError(
                    f"rank {self._world.rank} of {self._world.size} waited {_PATIENCE_S:.0f} s for a step: another "
                    "rank was stopped or failed"
                )
            time.sleep(_POLL_S)
