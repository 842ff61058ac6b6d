"""How a run looks while it goes: a live bar on a terminal, one plain line an epoch elsewhere."""

import shlex
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastcifar import cifar10, runs
from fastcifar.observer import Observer
from fastcifar.recipes import Recipe
from fastcifar.run_list import RunSummary


class Console(Observer):
    """Tells a person how a run goes."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self._out,
            disable=is_silent or not self._out.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, rate="")
        self._num_epochs = self._num_steps = self._batch_size = 0
        self._epoch_start = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, line: str) -> None:
        """Print one line."""
        self._out.print(line, markup=False)

    def begin(self, num_epochs: int, num_steps: int, batch_size: int) -> None:
        """Training begins: so many epochs of so many steps."""
        self._num_epochs, self._num_steps, self._batch_size = num_epochs, num_steps, batch_size
        self._progress.update(self._task, total=num_epochs * num_steps)

    def step(self, epoch: int, step: int) -> None:
        """A step was issued; both count from 0."""
        now = time.perf_counter()
        if step == 0:
            self._epoch_start = now
        rate = f"{step * self._batch_size / (now - self._epoch_start):,.0f} img/s" if step else ""
        self._progress.update(
            self._task,
            completed=epoch * self._num_steps + step + 1,
            description=f"epoch {epoch + 1}/{self._num_epochs}",
            rate=rate,
        )

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch ended; its line of `metrics.jsonl`."""
        self.note(
            f"epoch {metrics['epoch'] + 1:>{len(str(self._num_epochs))}}/{self._num_epochs}"
            f"  train loss {metrics['train_loss']:.3f} acc {metrics['train_accuracy']:.1%}"
            f"  val loss {metrics['val_loss']:.3f} acc {metrics['val_accuracy']:.1%}"
            f"  lr {metrics['lr']:.2g}  {metrics['img_per_s']:,.0f} img/s  {metrics['seconds']:.1f} s"
        )

    def summarise(
        self, recipe: Recipe, config: dict[str, Any], run_dir: Path, results: dict[str, Any], *, again: str
    ) -> None:
        """The run's end: what it reached, where everything is, and what to do next.

        Args:
            recipe: as published.
            config: the run's settings as in `config.json`.
            run_dir: where everything was written.
            results: as in `results.json`.
            again: the command for a whole run.
        """
        best, last = results["best"], results["last"]
        lines = ["", f"test accuracy on {results['num_test_images']:,} images    clean   augmented"]
        for name, row in ((f"best weights (epoch {best['epoch'] + 1})", best), ("last weights", last)):
            lines.append(f"  {name:<27}{row['test_accuracy']:>9.2%}{row['test_accuracy_augmented']:>12.2%}")
        lines.append(f"  {'last weights, val and test':<27}{results['val_and_test_accuracy']:>9.2%}")
        if recipe.published_accuracy is not None:
            lines.append(f"  {'published':<27}{recipe.published_accuracy:>9.0%}   (very likely on augmented images)")
        num_train = cifar10.CONTENT.num_train
        is_short = config["epochs"] < recipe.epochs or config["train_images"] < num_train
        if is_short:
            seconds = recipe.epochs * num_train / results["img_per_s"]
            lines += [
                "",
                f"This was a short run: {config['epochs']} of {recipe.epochs} epochs,"
                f" {config['train_images']:,} of {num_train:,} training images.",
                f"At the {results['img_per_s']:,.0f} img/s measured here the full recipe trains for about "
                + (f"{seconds / 3600:.1f} hours." if seconds > 600 else f"{seconds:.0f} seconds."),
            ]
        charts = run_dir / "charts"
        lines += ["", f"run       {run_dir}", f"charts    {charts}/curves.png, confusion.png, samples.png",
                  f"weights   {run_dir / runs.BEST}"]  # fmt: skip
        next_command = f"{again}   (the full recipe)" if is_short else f"{again} --seed {config['seed'] + 1}"
        lines.append(f"next      {next_command}")
        for line in lines:
            self.note(line)


def _print_table(columns: list[str], rows: list[list[str]], *, num_text_columns: int) -> None:
    """A plain table; the first columns are text, the others figures. In a pipe it is as wide as it needs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < num_text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    RichConsole(highlight=False, width=None if RichConsole().is_terminal else 1000).print(table)


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Print what `classifier.evaluate_split` found."""
    out = RichConsole(highlight=False, soft_wrap=True)
    low, high = evaluation["interval_95"]
    how = "augmented" if evaluation["augmented"] else "clean, mirror TTA" if evaluation["mirror_tta"] else "clean"
    out.print(
        f"{evaluation['checkpoint']}: {evaluation['recipe']}, {evaluation['num_epochs']} epochs\n"
        f"accuracy {evaluation['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%}), loss {evaluation['loss']:.4f},"
        f" on {evaluation['num_images']:,} images of {evaluation['split']}, {how}\n",
        markup=False,
    )

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    rows = [
        [row["class"], *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['num_images']:,}"]
        for row in evaluation["classes"]
    ]
    _print_table(["class", "precision", "recall", "F1", "images"], rows, num_text_columns=1)
    if evaluation["confusions"]:
        mistakes = [f"{row['label']} as {row['predicted']} {row['count']}" for row in evaluation["confusions"][:5]]
        out.print(f"\nmost often taken: {', '.join(mistakes)}", markup=False)


def show_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print what `classifier.predict_pictures` found."""
    rows = [
        [row["path"], *(f"{guess['class']} {guess['probability']:.1%}" for guess in row["top"])] for row in predictions
    ]
    _print_table(["picture", "first", "second", "third"], rows, num_text_columns=4)


def show_runs(folder: Path, found: list[RunSummary]) -> None:
    """Print a table of runs, and how to go on with one that was stopped."""
    out = RichConsole(highlight=False, soft_wrap=True)
    if not found:
        out.print(f"{folder} holds no runs", markup=False)
        return
    rows = [
        [
            run.path.name or str(run.path), run.state, run.recipe, f"{run.num_epochs}/{run.epochs}",
            "" if run.seed is None else str(run.seed),
            "" if run.test_accuracy is None else f"{run.test_accuracy:.2%}",
            "" if run.img_per_s is None else f"{run.img_per_s:,.0f}",
            "" if run.begun is None else f"{run.begun:%Y-%m-%d %H:%M}",
        ]
        for run in found
    ]  # fmt: skip
    _print_table(["run", "state", "recipe", "epochs", "seed", "test", "img/s", "begun"], rows, num_text_columns=3)
    stopped = [run for run in found if run.state == "stopped"]
    if stopped:
        command = f"fastcifar train --resume {shlex.quote(str(stopped[0].path))}"
        out.print(f"\nstopped runs go on where they were, for example: {command}", markup=False)
