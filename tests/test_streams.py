import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import ENVIRONMENT

PROGRAM = """
import os, sys
from fastcifar.streams import may_be_lost, open_standard_streams
open_standard_streams()
if "lost" in sys.argv:
    may_be_lost(sys.stdout)
with open("checkpoint", "wb") as file:  # gets the lowest free descriptor
    for number in (1, 2):
        try:
            os.write(number, b"a library writes by number")
        except OSError:
            pass
    file.write(b"weights")
print("error", file=sys.stderr)
try:
    print("a result", flush=True)
except OSError as error:
    open("problem", "w").write(f"{error.filename}: {error.strerror}")
    os._exit(4)
sys.exit(3)
"""


def run(folder: Path, redirections: str, *arguments: str) -> int:
    """The exit code of a program that prints, with its streams as a shell redirects them."""
    command = f'"$@" {redirections}'
    words = ["bash", "-c", command, "bash", sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=False, timeout=300).returncode


@pytest.mark.parametrize("redirections", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_streams_descriptor_is_not_reused(tmp_path: Path, redirections: str) -> None:
    assert run(tmp_path, redirections) == 3
    assert (tmp_path / "checkpoint").read_bytes() == b"weights"


def test_a_result_that_is_lost_says_where(tmp_path: Path) -> None:
    assert run(tmp_path, "> /dev/full") == 4
    assert (tmp_path / "problem").read_text() == "standard output: No space left on device"


@pytest.mark.parametrize("redirections", ["2> /dev/full", "2> >(exit)"])
def test_an_error_that_cannot_be_shown_changes_nothing(tmp_path: Path, redirections: str) -> None:
    assert run(tmp_path, redirections) == 3


@pytest.mark.parametrize("redirections", ["> /dev/full", "> >(exit)", "> >(exit) 2>&1"])
def test_progress_that_cannot_be_shown_changes_nothing(tmp_path: Path, redirections: str) -> None:
    assert run(tmp_path, redirections, "lost") == 3


def test_a_lost_terminal_changes_nothing(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    words = [sys.executable, "-c", f"input()\n{PROGRAM}", "lost"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.close(ours)  # writing to the other end fails from now on (EIO)
        process.communicate(b"\n", timeout=300)
    assert process.returncode == 3
