"""Output for a terminal: the live view of a run, tables, and a run's summary."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Self

import click
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn
from rich.table import Table

from fastcifar.data import cifar10
from fastcifar.errors import one_line
from fastcifar.recipes import Recipe
from fastcifar.results.records import BEST_FILE, EpochMetrics, Results
from fastcifar.results.run_dir import RunSummary
from fastcifar.training.callbacks import Callback

if TYPE_CHECKING:  # `fastcifar runs` needs no torch
    from fastcifar.inference.evaluation import Evaluation
    from fastcifar.inference.prediction import Prediction
    from fastcifar.results.seed_tables import SeedTable  # imports scipy, which only `repeat` and `report` need
    from fastcifar.training.settings import Settings

_MAX_BAR = 100  # columns, the epoch and the percentage beside it included


def plain_console(*, quiet: bool = False) -> Console:
    """Standard output without rich's markup and emoji names, because a path may contain either."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # rich also treats FORCE_COLOR as a terminal
    out = Console(
        force_terminal=is_terminal,
        width=None if is_terminal else sys.maxsize,  # a line in a pipe or a file is never broken
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        quiet=quiet,
    )
    if not out.width:  # COLUMNS=0: use the terminal's width, because with a width of 0 rich shows nothing
        out.width = shutil.get_terminal_size().columns
    return out


class RunView(Callback):
    """Shows the progress of a run.

    Args:
        quiet: whether to show nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._out = plain_console(quiet=quiet)
        self._is_live = self._out.is_terminal and not self._out.is_dumb_terminal and not quiet
        is_stderr_here = sys.stderr is not None and sys.stderr.isatty()  # the view would swallow `2> log`
        self._live = Live(self, console=self._out, transient=True, redirect_stderr=is_stderr_here)
        bar = BarColumn(None, complete_style="cyan", finished_style="cyan", pulse_style="cyan")
        columns = ("{task.description}", bar, TaskProgressColumn("{task.percentage:>3.0f}%"))
        # Counts the steps of the whole run. The view draws it, so it is not started.
        self._progress = Progress(*columns, console=self._out, expand=True, get_time=perf_counter)
        self._task_id = self._progress.add_task("", total=None)
        self._num_epochs = self._num_steps = self._batch_size = 0
        self._first_position = 0  # steps done before this process
        self._epoch_start = 0.0
        self._rate: float | None = None  # images per second
        self._finished: list[EpochMetrics] = []

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_message(self, line: str) -> None:
        """Print one line."""
        self._out.print(line)

    def on_warning(self, line: str) -> None:
        """Print one line on standard error, even if `quiet`."""
        click.echo(f"warning: {one_line(line)}", err=True)

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[EpochMetrics]
    ) -> None:
        """Training begins; `finished` has the metrics of the epochs that a resumed run finished before."""
        self._num_epochs, self._num_steps, self._batch_size = num_epochs, num_steps, batch_size
        self._first_position = len(finished) * num_steps
        self._progress.reset(self._task_id, total=num_epochs * num_steps)
        self._move(len(finished), self._first_position)
        self._epoch_start, self._rate, self._finished = perf_counter(), None, list(finished)

    def on_step_end(self, epoch: int, step: int) -> None:
        """A step was issued; `step` is the last finished one. Both numbers count from 0."""
        self._rate = (step + 1) * self._batch_size / (perf_counter() - self._epoch_start)
        self._move(epoch, epoch * self._num_steps + step + 1)

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        """An epoch ended; `metrics` is its line of `metrics.jsonl`."""
        self._epoch_start, self._rate = perf_counter(), metrics.img_per_s
        self._finished.append(metrics)
        epoch = f"epoch {metrics.epoch + 1:>{len(str(self._num_epochs))}}/{self._num_epochs}"
        train = f"train loss {metrics.train_loss:.3f} acc {metrics.train_accuracy:.1%}"
        val = f"val loss {metrics.val_loss:.3f} acc {metrics.val_accuracy:.1%}"
        lr, rate, seconds = f"lr {metrics.lr:.2g}", f"{metrics.img_per_s:,.0f} img/s", f"{metrics.seconds:.1f} s"
        parts = [epoch, train, val, lr, rate, seconds]
        for least_important in (lr, seconds, rate, train):
            if len("  ".join(parts)) > self._out.width:
                parts.remove(least_important)
        self.on_message("  ".join(parts))

    def _move(self, epoch: int, position: int) -> None:
        label = f"epoch {min(epoch + 1, self._num_epochs)}/{self._num_epochs}"  # a resumed run may only be evaluated
        self._progress.update(self._task_id, completed=position, description=label)

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw the live view; rich asks for it four times a second."""
        yield Constrain(self._progress, _MAX_BAR)
        for parts in (self._pace(), self._figures()):
            yield Columns(parts, padding=(0, 2))

    def _pace(self) -> list[str]:
        """Rate, time elapsed, and time left by this process's pace: epochs of an earlier process do not count."""
        task = self._progress.tasks[0]
        if task.remaining is None:  # training has not begun
            return []
        passed, num_done = task.elapsed or 0.0, task.completed - self._first_position
        pace = [] if self._rate is None else [f"{self._rate:,.0f} img/s"]
        pace.append(f"{timedelta(seconds=round(passed))} elapsed")
        if num_done:
            pace.append(f"{timedelta(seconds=round(passed / num_done * task.remaining))} left")
        return pace

    def _figures(self) -> list[str]:
        """Figures of finished epochs only: reading the current step's loss would have to wait for the device."""
        if not self._finished:
            return []
        last, best = self._finished[-1], max(self._finished, key=lambda metrics: metrics.val_accuracy)
        return [
            f"last: train loss {last.train_loss:.3f}, val acc {last.val_accuracy:.1%}",
            f"best: val acc {best.val_accuracy:.1%}, epoch {best.epoch + 1}",
        ]


def print_table(columns: list[str], rows: list[list[str]], *, num_text_columns: int) -> None:
    """Print a plain table; on a terminal too narrow for it, each row becomes a block of lines.

    Args:
        columns: the headings; the first column names the row.
        rows: the rows, each with one cell per column.
        num_text_columns: the number of text columns, which come first; the others hold figures.
    """
    out = plain_console()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < num_text_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if out.measure(table, options=out.options.update(width=sys.maxsize)).maximum <= out.width:
        with out.capture() as capture:
            out.print(table)
        # Without the spaces with which rich fills each line.
        out.out("\n".join(line.rstrip() for line in capture.get().split("\n")), end="")
        return
    indent = max(map(len, columns[1:])) + 4
    for row in rows:
        out.print(row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                out.print(f"  {column}".ljust(indent) + cell)


def show_summary(recipe: Recipe, settings: "Settings", run_dir: Path, results: Results, *, again: str | None) -> None:
    """Print the summary of a finished run: its results, where its files are, and what to do next.

    Args:
        recipe: the recipe as published.
        settings: the run's settings.
        run_dir: the run directory.
        results: the run's results.
        again: the command for a whole run with the recipe's seed; None to suggest none.
    """
    out = plain_console()
    best, last = results.best, results.last
    rows = [
        [f"{name}, epoch {row.epoch + 1}", f"{row.test_accuracy:.2%}", f"{row.test_accuracy_augmented:.2%}"]
        for name, row in (("best", best), ("last", last))
    ]
    rows.append(["last, val + test", f"{results.test10k_accuracy:.2%}", ""])
    if recipe.published_accuracy is not None:
        rows.append(["published", "", f"{recipe.published_accuracy:.0%}"])
    out.print(f"\naccuracy on {results.num_test_images:,} test images")
    print_table(["weights", "clean", "augmented"], rows, num_text_columns=1)
    if recipe.published_accuracy is not None:
        _print_text(out, "The published accuracy is very likely on augmented images.")
    epochs, num_images, num_train = settings.recipe.epochs, settings.num_train_images, cifar10.SPEC.num_train
    is_short = epochs < recipe.epochs or num_images < num_train
    if is_short:
        seconds = recipe.epochs * num_train / results.img_per_s
        duration = f"{seconds / 3600:.1f} hours" if seconds > 600 else f"{seconds:.0f} seconds"
        _print_text(
            out,
            f"\nThis was a short run: {epochs} of {recipe.epochs} epochs, {num_images:,} of"
            f" {num_train:,} training images. At the {results.img_per_s:,.0f} img/s measured here the full recipe"
            f" trains for about {duration}.",
        )
    out.print(f"\nrun       {one_line(str(run_dir))}")
    out.print(f"weights   {one_line(str(run_dir / BEST_FILE))}")
    if (run_dir / "charts").exists():  # otherwise they could not be drawn
        out.print(f"charts    {one_line(str(run_dir / 'charts'))}")
    where = shlex.quote(str(run_dir))
    commands = {
        f"fastcifar report {where}": "everything on one page",
        f"fastcifar evaluate {where}": "scores of each class",
        f"fastcifar predict {where} PICTURE": "classify your own picture",
    }
    if again is not None:
        seed = settings.recipe.seed if is_short else settings.recipe.seed + 1
        again += "" if seed == recipe.seed else f" --seed {seed}"
        commands[again] = "the full recipe" if is_short else "another seed"
    for position, (command, purpose) in enumerate(commands.items()):
        line = f"{'' if position else 'next':<10}{command}"
        out.print(f"{line}  # {purpose}" if len(line) + len(purpose) + 4 <= out.width else line)


def _print_text(out: Console, text: str) -> None:
    """Print sentences: broken between words on a terminal, on one line elsewhere."""
    out.print(text, soft_wrap=False)


def show_evaluation(evaluation: "Evaluation") -> None:
    """Print the result of `evaluation.evaluate_split`."""
    out = plain_console()
    low, high = evaluation.interval_95
    out.print(one_line(evaluation.describe_model()))
    _print_text(
        out,
        f"accuracy {evaluation.accuracy:.2%} (95% interval {low:.2%} to {high:.2%}), loss {evaluation.loss:.4f},"
        f" on {evaluation.describe_images()}",
    )
    trust = evaluation.calibration
    _print_text(out, f"expected calibration error {trust.error:.2%} (mean confidence {trust.mean_confidence:.1%})\n")

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    rows = [
        [row.class_name, *map(percent, (row.precision, row.recall, row.f1)), f"{row.num_images:,}"]
        for row in evaluation.classes
    ]
    print_table(["class", "precision", "recall", "F1", "images"], rows, num_text_columns=1)
    if evaluation.confusions:
        mistakes = [f"{row.label} as {row.predicted} {row.count}" for row in evaluation.confusions[:5]]
        _print_text(out, f"\ntop confusions: {', '.join(mistakes)}")


def show_predictions(predictions: "Sequence[Prediction]") -> None:
    """Print the result of `prediction.predict_pictures`."""
    rows = [
        [one_line(row.path), *(f"{guess.class_name} {guess.probability:.1%}" for guess in row.top)]
        for row in predictions
    ]
    print_table(["picture", "first", "second", "third"], rows, num_text_columns=4)


def show_runs(folder: Path, found: list[RunSummary]) -> None:
    """Print a table of runs, and how to continue a stopped one."""
    out = plain_console()
    if not found:
        out.print(f"{one_line(str(folder))} holds no runs")
        return
    rows = [
        [
            one_line(run.path.name or str(run.path)),
            run.state,
            run.recipe,
            f"{run.num_epochs}/{run.epochs}",
            "" if run.seed is None else str(run.seed),
            "" if run.test_accuracy is None else f"{run.test_accuracy:.2%}",
            "" if run.img_per_s is None else f"{run.img_per_s:,.0f}",
            "" if run.begun is None else f"{run.begun:%Y-%m-%d %H:%M}",
        ]
        for run in found
    ]
    print_table(["run", "state", "recipe", "epochs", "seed", "test", "img/s", "begun"], rows, num_text_columns=3)
    stopped = [run for run in found if run.state == "stopped"]
    if stopped:
        command = f"fastcifar train --resume {shlex.quote(str(stopped[0].path))}"
        out.print(f"\nto continue a stopped run, for example: {command}")


def show_seed_tables(tables: "Sequence[SeedTable]", written: Sequence[Path]) -> None:
    """Print tables of seed statistics, and the files they were written to."""
    out = plain_console()
    for table in tables:
        _print_text(out, table.title)
        print_table(table.columns, table.rows, num_text_columns=1)
        for remark in table.remarks:
            _print_text(out, remark)
        out.print()
    for path in written:
        out.print(one_line(str(path)))
