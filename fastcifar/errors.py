"""Exceptions for errors that a user can correct and for runs that are stopped, and parts of one-line texts."""


class FastcifarError(Exception):
    """An error that the user can correct.

    The message is one line: what is wrong, with which file or value, and what to do. The command line prints it
    and exits with code 2; library users catch this one type.
    """


class ArgumentError(FastcifarError):
    """An argument has a value that cannot be used.

    Args:
        argument: its name, which begins the message. The command line shows the option of that name instead.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument, self.problem = argument, problem


def check_choice(argument: str, value: object, *known: str) -> None:
    """Refuse a value that is not one of the known ones.

    Raises:
        ArgumentError: it is not; the message lists them.
    """
    if value not in known:
        raise ArgumentError(argument, f"must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}")


class DivergedError(FastcifarError):
    """A run's loss is not finite, and further training would not change that.

    Args:
        reason: the step and epoch in which it happened.
        saved: what is saved of the run.
    """

    def __init__(self, reason: str, saved: str) -> None:
        super().__init__(f"{reason}: {saved}")
        self.reason = reason


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt, not an error)
    """SIGINT, SIGTERM or SIGHUP ended a run early; the message says what is saved.

    Attributes:
        signal_number: the number of that signal.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def one_line(text: str) -> str:
    """Text as one line for a terminal; control characters are escaped, because a file name may contain them."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: 1 epoch, 2,000 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def reason(error: BaseException) -> str:
    """An exception's text as one short line, for use inside another message."""
    return one_line(" ".join(str(error).split()) or type(error).__name__)[:300]
