"""Terminals that are not there."""

import pytest


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, width: int, term: str = "xterm-256color") -> None:
    """Let rich take standard output for a terminal."""
    for name, value in {"FORCE_COLOR": "1", "TERM": term, "COLUMNS": str(width), "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
