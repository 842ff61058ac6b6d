import io
import os
import re

import pytest
from rich.console import Console as RichConsole
from support.terminals import pretend_terminal

from fastcifar import terminal
from fastcifar.results.records import EpochMetrics
from fastcifar.terminal import RunView


def metrics(epoch: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.23456,
        train_accuracy=0.5512,
        val_loss=1.1,
        val_accuracy=val_accuracy,
        lr=0.001,
        img_per_s=12345.6,
        seconds=4.25,
    )


class Clock:
    """Advances only when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "perf_counter", clock)
    return clock


def view(run_view: RunView, width: int) -> list[str]:
    paper = RichConsole(file=io.StringIO(), width=width, color_system=None)
    return ["".join(segment.text for segment in line).rstrip() for line in paper.render_lines(run_view)]


def test_an_epoch_is_one_plain_line_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with RunView() as run_view:
        run_view.on_train_begin(10, 5, 8, ())
        for step in range(5):
            run_view.on_step_end(1, step)
        run_view.on_epoch_end(metrics(1, 0.6))
        run_view.on_message("a [red]path[/red] :cat:")
    assert capsys.readouterr().out == (
        "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  lr 0.001  12,346 img/s  4.2 s\n"
        "a [red]path[/red] :cat:\n"
    )


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (30, "epoch  2/10  val loss 1.100 acc 60.0%"),  # there is no shorter line
        (40, "epoch  2/10  val loss 1.100 acc 60.0%"),
        (66, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%"),
        (80, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  12,346 img/s"),
        (88, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  12,346 img/s  4.2 s"),
        (200, "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  lr 0.001  12,346 img/s  4.2 s"),
    ],
)
def test_an_epochs_line_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, line: str
) -> None:
    pretend_terminal(monkeypatch, width)
    run_view = RunView()
    run_view.on_train_begin(10, 5, 8, ())
    run_view.on_epoch_end(metrics(1, 0.6))
    assert capsys.readouterr().out == f"{line}\n"


def halfway(run_view: RunView, clock: Clock) -> None:
    """100 of 200 seconds: epoch 3 of 4 begins, and the second was worse than the first."""
    run_view.on_train_begin(4, 10, 8, ())
    clock.now += 50
    run_view.on_step_end(0, 9)
    run_view.on_epoch_end(metrics(0, 0.6))
    clock.now += 40
    run_view.on_step_end(1, 0)
    clock.now += 10
    run_view.on_step_end(1, 9)
    run_view.on_epoch_end(metrics(1, 0.55))


def bar(width: int, share: float = 0.5) -> str:
    halves = int(width * 2 * share)
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return full.ljust(width)  # without colours rich leaves the rest blank


def test_the_live_view(clock: Clock) -> None:
    run_view = RunView()
    assert view(run_view, 20)[0].strip(" ━") == ""  # nothing is known yet: only a moving bar
    halfway(run_view, clock)
    pace = "12,346 img/s  0:01:40 elapsed  0:01:40 left"
    last, best = "last: train loss 1.235, val acc 55.0%", "best: val acc 60.0%, epoch 1"
    assert view(run_view, 43) == [f"epoch 2/4 {bar(28)}  50%", pace, last, best]
    assert view(run_view, 80) == [f"epoch 2/4 {bar(65)}  50%", pace, f"{last}  {best}"]
    assert view(run_view, 200) == [f"epoch 2/4 {bar(85)}  50%", pace, f"{last}  {best}"]
    clock.now += 10
    run_view.on_step_end(2, 0)
    clock.now += 2
    run_view.on_step_end(2, 1)
    assert view(run_view, 42)[:3] == [
        f"epoch 3/4 {bar(27, 22 / 40)}  55%",
        "1 img/s  0:01:52 elapsed  0:01:32 left",
        last,
    ]


def test_a_resumed_run_begins_where_it_stands(clock: Clock) -> None:
    run_view = RunView()
    run_view.on_train_begin(4, 10, 8, (metrics(0, 0.6), metrics(1, 0.5)))
    assert view(run_view, 60) == [
        f"epoch 3/4 {bar(45)}  50%",
        "0:00:00 elapsed",
        "last: train loss 1.235, val acc 50.0%",
        "best: val acc 60.0%, epoch 1",
    ]
    clock.now += 5
    run_view.on_step_end(2, 0)
    clock.now += 5
    run_view.on_step_end(2, 1)
    # 2 of 20 steps in 10 seconds; the 20 steps before do not count.
    assert view(run_view, 60)[1] == "2 img/s  0:00:10 elapsed  0:01:30 left"


def test_a_resumed_run_with_no_epoch_left_is_at_its_last(clock: Clock) -> None:
    run_view = RunView()
    run_view.on_train_begin(2, 10, 8, (metrics(0, 0.6), metrics(1, 0.5)))
    assert view(run_view, 60)[:2] == [f"epoch 2/2 {bar(45, 1)} 100%", "0:00:00 elapsed"]


@pytest.mark.parametrize("width", [0, 1, 10, 20])
def test_a_terminal_too_narrow_for_the_view_shows_the_parts_one_by_one(clock: Clock, width: int) -> None:
    run_view = RunView()
    halfway(run_view, clock)
    lines = view(run_view, width)
    assert max(map(len, lines), default=0) <= width
    if width == 20:
        assert lines[1:4] == ["12,346 img/s", "0:01:40 elapsed", "0:01:40 left"]


def test_hours_and_thousands(clock: Clock) -> None:
    run_view = RunView()
    run_view.on_train_begin(70, 390, 128, ())
    clock.now += 3725
    run_view.on_step_end(0, 389)
    assert view(run_view, 80)[1] == "13 img/s  1:02:05 elapsed  2 days, 23:23:45 left"  # 69 more epochs
    assert view(run_view, 36)[1:] == ["13 img/s", "1:02:05 elapsed", "2 days, 23:23:45 left"]


def test_a_terminal_gets_the_view_and_is_left_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    pretend_terminal(monkeypatch, 80)
    with RunView() as run_view:
        halfway(run_view, clock)
        run_view._live.refresh()
        shown = capsys.readouterr().out
    hide_cursor, show_cursor, erase_three_lines = "\x1b[?25l", "\x1b[?25h", "\x1b[1A\x1b[2K" * 3
    assert shown.startswith(hide_cursor)
    assert "0:01:40 left" in shown
    assert capsys.readouterr().out.endswith(f"{show_cursor}\r{erase_three_lines}")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_turns_colours_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock, no_color: str
) -> None:
    pretend_terminal(monkeypatch, 80)
    monkeypatch.setenv("NO_COLOR", no_color)
    with RunView() as run_view:
        halfway(run_view, clock)
        run_view._live.refresh()
    out = capsys.readouterr().out
    assert ("\x1b[36m━" in out) is not bool(no_color)
    assert not no_color or re.findall(r"\x1b\[[\d;]*m", out) == []


def test_a_dumb_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    pretend_terminal(monkeypatch, 80, "dumb")
    with RunView() as run_view:
        halfway(run_view, clock)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    line = "epoch {}/4  train loss 1.235 acc 55.1%  val loss 1.100 acc {}%  12,346 img/s"  # 80 columns hold no more
    assert out.splitlines() == [line.format(1, "60.0"), line.format(2, "55.0")]


def test_columns_0_means_the_terminals_own_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    pretend_terminal(monkeypatch, 0)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((40, 24)))
    with RunView() as run_view:
        halfway(run_view, clock)
    assert "epoch 1/4  val loss 1.100 acc 60.0%\n" in capsys.readouterr().out


def test_a_pipe_gets_lines_in_any_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with RunView() as run_view:
        halfway(run_view, clock)
        run_view.on_message("done")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/4", "epoch 2/4", "done"]


def test_quiet_prints_warnings_only(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with RunView(quiet=True) as run_view:
        run_view.on_message("compiling")
        run_view.on_warning("no\ncharts")
        halfway(run_view, clock)
    assert capsys.readouterr() == ("", "warning: no\\ncharts\n")
