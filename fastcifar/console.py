"""How a run looks while it goes: a live bar on a terminal, one plain line an epoch elsewhere."""

import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastcifar import cifar10, runs
from fastcifar.recipes import Recipe


class Console:
    """Tells a person how a run goes; an `Observer` of `train.train`."""

    def __init__(self) -> None:
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
            disable=not self._out.is_terminal,
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
