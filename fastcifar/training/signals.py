"""SIGINT, SIGTERM and SIGHUP end a run cleanly, at its next step."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, Self

from fastcifar.distributed import ALONE, World


class StopSignals:
    """Records the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.

    SIGHUP means that the terminal or the connection is gone. If it is already ignored, as under nohup, it stays so.

    Args:
        world: of several processes only rank 0 listens, and a second signal does not end it: torchrun forwards signals,
            so the same one may arrive twice.

    Attributes:
        received: the first signal's number, or None.
        answer: the message for the first signal.
    """

    def __init__(self, world: World = ALONE) -> None:
        self._world = world
        self.received: int | None = None
        self.answer = "stopping after this step"
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python handles signals only there
        if self._world.is_main and is_main_thread:
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._former = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None and self._world.size > 1:
            return
        if self.received is not None:
            if sys.stdout is not None:
                with contextlib.suppress(ValueError, OSError):  # the progress bar has hidden the cursor
                    os.write(sys.stdout.fileno(), b"\x1b[?25h" if sys.stdout.isatty() else b"")
            os._exit(128 + number)
        self.received = number
        again = "" if self._world.size > 1 else "; a second signal stops at once"
        _say(f"{self.answer}{again}\n")


def _say(text: str) -> None:
    """Write to standard error if it is open: the descriptor of a closed stream may now belong to another file."""
    if sys.stderr is None:
        return
    with contextlib.suppress(ValueError, OSError):  # closed later, or nobody reads it
        try:
            sys.stderr.write(text)  # a live view prints it above itself
            sys.stderr.flush()
        except RuntimeError:  # the signal came during another write
            os.write(sys.stderr.fileno(), text.encode())
