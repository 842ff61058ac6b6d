"""Standard output and standard error that may be closed or full, or whose terminal may be gone."""

import io
import os
import sys
from typing import Any


class StandardStream(io.FileIO):
    """The raw file of a standard stream.

    The error of a failed write names the stream. A stream that `may_be_lost` drops the text instead: a progress line
    that nobody can read is no reason to stop.

    Args:
        number: the file descriptor, 1 or 2; it stays open.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.may_be_lost = False
        self._shown_name = {1: "standard output", 2: "standard error"}[number]

    def write(self, data: Any, /) -> int:
        """Write to the descriptor."""
        try:
            return super().write(data)
        except OSError as error:
            if self.may_be_lost:
                return len(data)
            error.filename = self._shown_name
            raise


def open_standard_streams() -> None:
    """Give the process reliable standard streams; called once, before anything else is opened.

    If the shell closed one (`2>&-`), Python sets it to None, and the next file that is opened would get its descriptor:
    a library that writes to descriptor 2 would write into a checkpoint. /dev/null takes the descriptor instead.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free descriptor: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        former = getattr(sys, name)
        if former is not None and former is not getattr(sys, f"__{name}__"):
            continue  # someone has replaced the stream
        stream = io.TextIOWrapper(
            io.BufferedWriter(StandardStream(number)),
            encoding=getattr(former, "encoding", None),
            errors="backslashreplace",  # a path need not be text
            line_buffering=getattr(former, "line_buffering", True),
            write_through=getattr(former, "write_through", False),
        )
        setattr(sys, name, stream)
    may_be_lost(sys.stderr)  # the exit code says it too


def may_be_lost(stream: object) -> None:
    """Let a standard stream drop what cannot be written."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(raw, StandardStream):
        raw.may_be_lost = True
