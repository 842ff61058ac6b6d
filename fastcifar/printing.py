"""What commands print when they are done: tables on any width, and a run's summary."""

import shlex
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from fastcifar.data import cifar10
from fastcifar.errors import one_line
from fastcifar.recipes import Recipe
from fastcifar.results import run_dir as runs
from fastcifar.results.run_list import RunSummary


def plain_console(*, quiet: bool = False) -> Console:
    """Standard output, where text stays as it is: a path may hold what rich takes for markup or an emoji's name."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def print_table(columns: list[str], rows: list[list[str]], *, num_text_columns: int) -> None:
    """A plain table; on a terminal too narrow for it, each row becomes a block of lines instead.

    Args:
        columns: the headings; the first column says what a row is about.
        rows: of as many cells.
        num_text_columns: the first columns are text, the others figures.
    """
    out = plain_console()
    lines = [columns, *rows]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    if not out.is_terminal or sum(widths) + 2 * (len(widths) - 1) <= out.width:
        for number, line in enumerate(lines):
            fills = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
            cells = [cell + fill if i < num_text_columns else fill + cell
                     for i, (cell, fill) in enumerate(zip(line, fills, strict=True))]  # fmt: skip
            out.print("  ".join(cells).rstrip(), style=None if number else "bold")
        return
    indent = max(map(len, columns[1:])) + 4
    for row in rows:
        out.print(row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                out.print(f"  {column}".ljust(indent) + cell)


def show_summary(recipe: Recipe, config: dict[str, Any], run_dir: Path, results: dict[str, Any], *, again: str) -> None:
    """The run's end: what it reached, where everything is, and what to do next.

    Args:
        recipe: as published.
        config: the run's settings as in `config.json`.
        run_dir: where everything was written.
        results: as in `results.json`.
        again: the command for a whole run.
    """
    out = plain_console()
    best, last = results["best"], results["last"]
    rows = [
        [f"{name}, epoch {row['epoch'] + 1}", f"{row['test_accuracy']:.2%}", f"{row['test_accuracy_augmented']:.2%}"]
        for name, row in (("best", best), ("last", last))
    ]
    rows.append(["last, val + test", f"{results['val_and_test_accuracy']:.2%}", ""])
    if recipe.published_accuracy is not None:
        rows.append(["published", "", f"{recipe.published_accuracy:.0%}"])
    out.print(f"\naccuracy on {results['num_test_images']:,} test images")
    print_table(["weights", "clean", "augmented"], rows, num_text_columns=1)
    if recipe.published_accuracy is not None:
        _print_text(out, "The published one is very likely of augmented images.")
    num_train = cifar10.CONTENT.num_train
    is_short = config["epochs"] < recipe.epochs or config["train_images"] < num_train
    if is_short:
        seconds = recipe.epochs * num_train / results["img_per_s"]
        duration = f"{seconds / 3600:.1f} hours" if seconds > 600 else f"{seconds:.0f} seconds"
        _print_text(
            out,
            f"\nThis was a short run: {config['epochs']} of {recipe.epochs} epochs, {config['train_images']:,} of"
            f" {num_train:,} training images. At the {results['img_per_s']:,.0f} img/s measured here the full recipe"
            f" trains for about {duration}.",
        )
    where = shlex.quote(str(run_dir))
    commands = {
        f"fastcifar report {where}": "all of it as one page",
        f"fastcifar evaluate {where}": "scores of each class",
        f"fastcifar predict {where} PICTURE": "what it sees in yours",
        again if is_short else f"{again} --seed {config['seed'] + 1}": "the full recipe" if is_short else "once more",
    }
    out.print()
    for name, path in (("run", run_dir), ("weights", run_dir / runs.BEST), ("charts", run_dir / "charts")):
        out.print(f"{name:<10}{path}")
    for position, (command, purpose) in enumerate(commands.items()):
        line = f"{'' if position else 'next':<10}{command}"
        is_wide = not out.is_terminal or len(line) + len(purpose) + 4 <= out.width
        out.print(f"{line}  # {purpose}" if is_wide else line)


def _print_text(out: Console, text: str) -> None:
    """A sentence or more: broken between words on a terminal, one line elsewhere."""
    out.print(text, soft_wrap=not out.is_terminal)


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Print what `classifier.evaluate_split` found."""
    out = plain_console()
    low, high = evaluation["interval_95"]
    how = "augmented" if evaluation["augmented"] else "clean, mirror TTA" if evaluation["mirror_tta"] else "clean"
    out.print(f"{one_line(evaluation['checkpoint'])}: {evaluation['recipe']}, {evaluation['num_epochs']} epochs")
    _print_text(
        out,
        f"accuracy {evaluation['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%}), loss {evaluation['loss']:.4f},"
        f" on {evaluation['num_images']:,} images of {evaluation['split']}, {how}\n",
    )

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    rows = [
        [row["class"], *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['num_images']:,}"]
        for row in evaluation["classes"]
    ]
    print_table(["class", "precision", "recall", "F1", "images"], rows, num_text_columns=1)
    if evaluation["confusions"]:
        mistakes = [f"{row['label']} as {row['predicted']} {row['count']}" for row in evaluation["confusions"][:5]]
        _print_text(out, f"\nmost often taken: {', '.join(mistakes)}")


def show_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print what `classifier.predict_pictures` found."""
    rows = [
        [one_line(row["path"]), *(f"{guess['class']} {guess['probability']:.1%}" for guess in row["top"])]
        for row in predictions
    ]
    print_table(["picture", "first", "second", "third"], rows, num_text_columns=4)


def show_runs(folder: Path, found: list[RunSummary]) -> None:
    """Print a table of runs, and how to go on with one that was stopped."""
    out = plain_console()
    if not found:
        out.print(f"{one_line(str(folder))} holds no runs")
        return
    rows = [
        [
            one_line(run.path.name or str(run.path)), run.state, run.recipe, f"{run.num_epochs}/{run.epochs}",
            "" if run.seed is None else str(run.seed),
            "" if run.test_accuracy is None else f"{run.test_accuracy:.2%}",
            "" if run.img_per_s is None else f"{run.img_per_s:,.0f}",
            "" if run.begun is None else f"{run.begun:%Y-%m-%d %H:%M}",
        ]
        for run in found
    ]  # fmt: skip
    print_table(["run", "state", "recipe", "epochs", "seed", "test", "img/s", "begun"], rows, num_text_columns=3)
    stopped = [run for run in found if run.state == "stopped"]
    if stopped:
        command = f"fastcifar train --resume {shlex.quote(str(stopped[0].path))}"
        out.print(f"\nstopped runs go on where they were, for example: {command}")
