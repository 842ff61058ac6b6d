"""SIGINT and SIGTERM end a run in order, at its next step."""

import os
import signal
import sys
import threading
from typing import Any, Self

from fastcifar.distributed import ALONE, World


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of the first; a second one ends the process at once.

    Args:
        world: of several processes only rank 0 listens, and as often as it is told: torchrun passes signals on, so the
            same one may come twice.

    Attributes:
        received: the first signal's number, or None.
        answer: what the first one is answered with.
    """

    def __init__(self, world: World = ALONE) -> None:
        self._world = world
        self.received: int | None = None
        self.answer = "stopping after this step"
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python handles signals in no other
        if self._world.is_main and is_main_thread:
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None and self._world.size > 1:
            return
        if self.received is not None:
            os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the progress bar hid the cursor
            os._exit(128 + number)
        self.received = number
        again = "" if self._world.size > 1 else "; once more: at once"
        _say(f"{self.answer}{again}\n")


def _say(line: str) -> None:
    try:
        if sys.stderr.isatty():
            sys.stderr.write(line)  # which a live view puts above itself
            return
    except (RuntimeError, ValueError, OSError):  # the signal came during another write
        pass
    os.write(2, line.encode())
