import os
import signal
import sys

import pytest

from fastcifar.training.signals import StopSignals

pytestmark = pytest.mark.usefixtures("default_sighup")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_answered(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    former = signal.getsignal(number)
    with StopSignals() as signals:
        before = signals.received
        os.kill(os.getpid(), number)
        assert (before, signals.received) == (None, number)
    assert signal.getsignal(number) is former
    assert capsys.readouterr() == ("", "stopping after this step; a second signal stops at once\n")


def test_an_ignored_hangup_stays_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert capsys.readouterr() == ("", "")


class Gone:
    """The standard error of a terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stderr", [None, Gone()])
def test_a_signal_is_noted_without_a_working_stderr(stderr: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == signal.SIGHUP
