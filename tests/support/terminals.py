"""Simulated terminals."""

import sys

import pytest


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, width: int, term: str = "xterm-256color") -> None:
    """Make rich treat standard output as a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": term, "COLUMNS": str(width), "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
