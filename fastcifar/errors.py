"""The one exception type for what a user can act on, the one for a run that was told to stop, and their text."""


class FastcifarError(Exception):
    """Something is wrong that the user can put right.

    The message is one line: what is wrong, with which file or value, and what to do. The command line prints it
    and exits with code 2; library users catch this one type.
    """


class ArgumentError(FastcifarError):
    """An argument has a value that cannot be used.

    Args:
        argument: its name, with which the message begins. The command line shows the option of that name instead.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument, self.problem = argument, problem


class DivergedError(FastcifarError):
    """A run's loss is not finite, and training on would not change that.

    Args:
        reason: in which step of which epoch.
        saved: what of the run is saved.
    """

    def __init__(self, reason: str, saved: str) -> None:
        super().__init__(f"{reason}: {saved}")
        self.reason = reason


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt, no error)
    """SIGINT, SIGTERM or SIGHUP ended a run early; the message says what of it is saved.

    Attributes:
        signal_number: which of them.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def one_line(text: str) -> str:
    """Text as one line that a terminal only shows: what it would obey is written out (a file may be named anything)."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def reason(error: BaseException) -> str:
    """What an exception says, as one short line for the inside of another message."""
    return one_line(" ".join(str(error).split()) or type(error).__name__)[:200]
