"""How a run looks while it goes: a live view on a terminal, one plain line an epoch elsewhere."""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastcifar.printing import plain_console
from fastcifar.training.callbacks import Observer

_MAX_BAR = 100  # columns


class Console(Observer):
    """Tells a person how a run goes.

    Args:
        quiet: nobody is told anything.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._out = plain_console(quiet=quiet)
        self._is_live = self._out.is_terminal and not self._out.is_dumb_terminal and not quiet
        self._live = Live(self, console=self._out, transient=True)
        self._num_epochs = self._num_steps = self._batch_size = 0
        self._epoch = 0  # the one at work, from 1
        self._position = self._first_position = 0  # steps of the whole run: done, and done before this process
        self._begun = self._epoch_start = 0.0
        self._rate: float | None = None  # images a second
        self._last: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, line: str) -> None:
        """Print one line."""
        self._out.print(line)

    def begin(self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[dict[str, Any]]) -> None:
        """Training begins: so many epochs of so many steps; of a resumed run, the metrics of those finished before."""
        self._num_epochs, self._num_steps, self._batch_size = num_epochs, num_steps, batch_size
        self._epoch = len(finished) + 1
        self._position = self._first_position = len(finished) * num_steps
        self._begun = self._epoch_start = perf_counter()
        for metrics in finished:
            self._keep(metrics)

    def step(self, epoch: int, step: int) -> None:
        """A step was issued; both count from 0."""
        now = perf_counter()
        if step == 0:
            self._epoch_start = now
        else:
            self._rate = step * self._batch_size / (now - self._epoch_start)
        self._epoch, self._position = epoch + 1, epoch * self._num_steps + step + 1

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch ended; its line of `metrics.jsonl`."""
        self._keep(metrics)
        self._rate = metrics["img_per_s"]
        epoch = f"epoch {metrics['epoch'] + 1:>{len(str(self._num_epochs))}}/{self._num_epochs}"
        train, val = f"train loss {metrics['train_loss']:.3f}", f"val loss {metrics['val_loss']:.3f}"
        train_accuracy, val_accuracy = f"acc {metrics['train_accuracy']:.1%}", f"acc {metrics['val_accuracy']:.1%}"
        most = f"{epoch}  {train} {train_accuracy}  {val} {val_accuracy}"
        rate = f"{metrics['img_per_s']:,.0f} img/s"
        variants = [
            f"{most}  lr {metrics['lr']:.2g}  {rate}  {metrics['seconds']:.1f} s", f"{most}  {rate}", most,
            f"{epoch}  {train.removeprefix('train ')}  val {val_accuracy}", f"{epoch}  val {val_accuracy}",
        ]  # fmt: skip
        fitting = [line for line in variants if not self._is_live or len(line) <= self._out.width]
        self.note((fitting or variants[-1:])[0])

    def _keep(self, metrics: dict[str, Any]) -> None:
        self._last = metrics
        if self._best is None or metrics["val_accuracy"] > self._best["val_accuracy"]:
            self._best = metrics

    def __rich_console__(self, _: RichConsole, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw the live view; rich asks for it four times a second."""
        width, total = options.max_width, self._num_epochs * self._num_steps
        if not total:
            yield ProgressBar(total=None, width=min(width, _MAX_BAR), pulse_style="cyan")
            return
        epoch = f"epoch {self._epoch}/{self._num_epochs}"
        percentage = f"{100 * self._position // total:>3}%"
        bar_width = min(width, _MAX_BAR) - len(epoch) - len(percentage) - 2
        row = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        bar = ProgressBar(total, self._position, max(1, bar_width), complete_style="cyan", finished_style="cyan")
        row.add_row(epoch, bar, percentage)
        yield row
        for parts in (self._pace(total), self._figures()):
            for line in _pack(parts, width):
                yield Text(line, no_wrap=True)

    def _pace(self, total: int) -> list[str]:
        """Rate, time passed, and time left by what this process did: epochs of an earlier one do not count."""
        passed, num_done = perf_counter() - self._begun, self._position - self._first_position
        pace = [] if self._rate is None else [f"{self._rate:,.0f} img/s"]
        pace.append(f"{_format_duration(passed)} passed")
        if num_done:
            pace.append(f"{_format_duration(passed / num_done * (total - self._position))} left")
        return pace

    def _figures(self) -> list[str]:
        """Of finished epochs only: to read the step's loss, the device would have to be waited for."""
        if self._last is None or self._best is None:
            return []
        last, best = self._last, self._best
        return [
            f"last: train loss {last['train_loss']:.3f}, val acc {last['val_accuracy']:.1%}",
            f"best: val acc {best['val_accuracy']:.1%}, epoch {best['epoch'] + 1}",
        ]


def _pack(parts: Sequence[str], width: int) -> list[str]:
    """As few lines of that width as hold the parts, none of which is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
