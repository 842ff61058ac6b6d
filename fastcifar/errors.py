"""The one exception type for what a user can act on, and the one for a run that was told to stop."""


class FastcifarError(Exception):
    """Something is wrong that the user can mend.

    The message is one line: what is wrong, with which file or value, and what to do. The command line prints it
    and exits with code 2; library users catch this one type.
    """


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt, no error)
    """SIGINT or SIGTERM ended a run early; the message says what of it is saved.

    Attributes:
        signal_number: which of them.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
