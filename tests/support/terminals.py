"""Terminals that are not there."""

import sys

import pytest


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, width: int, term: str = "xterm-256color") -> None:
    """Let rich take standard output for a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": term, "COLUMNS": str(width), "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
