import io
import re
from typing import Any

import pytest
from rich.console import Console as RichConsole
from support.terminals import pretend_terminal

from fastcifar import console as console_module
from fastcifar.console import Console


def metrics(epoch: int, val_accuracy: float) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1.23456, "train_accuracy": 0.5512, "val_loss": 1.1,
            "val_accuracy": val_accuracy, "lr": 0.001, "img_per_s": 12345.6, "seconds": 4.25}  # fmt: skip


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "perf_counter", clock)
    return clock


def view(console: Console, width: int) -> list[str]:
    paper = RichConsole(file=io.StringIO(), width=width, color_system=None)
    return ["".join(segment.text for segment in line).rstrip() for line in paper.render_lines(console)]


def test_an_epoch_is_one_plain_line_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.begin(10, 5, 8, ())
        for step in range(5):
            console.step(1, step)
        console.epoch(metrics(1, 0.6))
        console.note("a [red]path[/red] :cat:")
    assert capsys.readouterr().out == (
        "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  lr 0.001  12,346 img/s  4.2 s\n"
        "a [red]path[/red] :cat:\n"
    )


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (30, "epoch  2/10  val acc 60.0%"),
        (40, "epoch  2/10  loss 1.235  val acc 60.0%"),
        (66, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%"),
        (80, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  12,346 img/s"),
        (200, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  lr 0.001  12,346 img/s  4.2 s"),
    ],
)
def test_an_epochs_line_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, line: str
) -> None:
    pretend_terminal(monkeypatch, width)
    console = Console()
    console.begin(10, 5, 8, ())
    console.epoch(metrics(1, 0.6))
    assert capsys.readouterr().out == f"{line}\n"


def halfway(console: Console, clock: Clock) -> None:
    """100 of 200 seconds: epoch 3 of 4 begins, and the second was worse than the first."""
    console.begin(4, 10, 8, ())
    clock.now += 50
    console.step(0, 9)
    console.epoch(metrics(0, 0.6))
    clock.now += 40
    console.step(1, 0)
    clock.now += 10
    console.step(1, 9)
    console.epoch(metrics(1, 0.55))


def bar(width: int, share: float = 0.5) -> str:
    halves = int(width * 2 * share)
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return full.ljust(width)  # without colours rich leaves the rest blank


def test_the_live_view(clock: Clock) -> None:
    console = Console()
    assert view(console, 20)[0].strip(" ━") == ""  # nothing is known yet: a bar that only moves
    halfway(console, clock)
    pace = "12,346 img/s  1:40 passed  1:40 left"
    last, best = "last: train loss 1.235, val acc 55.0%", "best: val acc 60.0%, epoch 1"
    assert view(console, 40) == [f"epoch 2/4 {bar(25)}  50%", pace, last, best]
    assert view(console, 80) == [f"epoch 2/4 {bar(65)}  50%", pace, f"{last}  {best}"]
    assert view(console, 200) == [f"epoch 2/4 {bar(85)}  50%", pace, f"{last}  {best}"]
    clock.now += 10
    console.step(2, 0)
    clock.now += 2
    console.step(2, 1)
    assert view(console, 40)[:3] == [f"epoch 3/4 {bar(25, 22 / 40)}  55%", "4 img/s  1:52 passed  1:32 left", last]


def test_a_resumed_run_begins_where_it_stands(clock: Clock) -> None:
    console = Console()
    console.begin(4, 10, 8, (metrics(0, 0.6), metrics(1, 0.5)))
    assert view(console, 60) == [
        f"epoch 3/4 {bar(45)}  50%", "0:00 passed",
        "last: train loss 1.235, val acc 50.0%", "best: val acc 60.0%, epoch 1",
    ]  # fmt: skip
    clock.now += 5
    console.step(2, 0)
    clock.now += 5
    console.step(2, 1)
    # 2 of 20 steps in 10 seconds; the 20 steps before do not count.
    assert view(console, 60)[1] == "2 img/s  0:10 passed  1:30 left"


def test_hours_and_thousands(clock: Clock) -> None:
    console = Console()
    console.begin(70, 390, 128, ())
    clock.now += 3725
    console.step(0, 389)
    assert view(console, 80)[1] == "13 img/s  1:02:05 passed  71:23:45 left"  # 69 more epochs
    assert view(console, 36)[1:] == ["13 img/s  1:02:05 passed", "71:23:45 left"]


def test_a_terminal_gets_the_view_and_is_left_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    pretend_terminal(monkeypatch, 80)
    with Console() as console:
        halfway(console, clock)
        console._live.refresh()
        shown = capsys.readouterr().out
    hide_cursor, show_cursor, erase_three_lines = "\x1b[?25l", "\x1b[?25h", "\x1b[1A\x1b[2K" * 3
    assert shown.startswith(hide_cursor)
    assert "1:40 left" in shown
    assert capsys.readouterr().out.endswith(f"{show_cursor}\r{erase_three_lines}")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_where_nobody_wants_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock, no_color: str
) -> None:
    pretend_terminal(monkeypatch, 80)
    monkeypatch.setenv("NO_COLOR", no_color)
    with Console() as console:
        halfway(console, clock)
        console._live.refresh()
    out = capsys.readouterr().out
    assert ("\x1b[36m━" in out) is not bool(no_color)
    assert not no_color or re.findall(r"\x1b\[[\d;]*m", out) == []


def test_a_dumb_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    pretend_terminal(monkeypatch, 80, "dumb")
    with Console() as console:
        halfway(console, clock)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/4", "epoch 2/4"]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Console(quiet=True) as console:
        console.note("compiling")
        halfway(console, clock)
    assert capsys.readouterr() == ("", "")
