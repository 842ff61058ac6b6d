"""Commands that train."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli.options import PATH, training_options
from fastcifar.cli.torchrun import command_prefix, launcher_hint, process_rank
from fastcifar.recipes import RECIPES, get_recipe
from fastcifar.streams import may_be_lost

if TYPE_CHECKING:
    from fastcifar.training.callbacks import Callback

_WITH_RESUME = ("run_dir", "data_dir", "quiet", "log")
_OF_ONE_RUN = ("epochs", "num_train_images", "num_eval_images", "seed", "out")
_WITH_FOLDERS = ("folders", "out", "paired", "target_accuracy", "quiet")


@click.command(short_help="Train with a recipe.")
@click.option("--recipe", "recipe_name", type=click.Choice(list(RECIPES)), help="The recipe to train with.")
@click.option(
    "--resume",
    "run_dir",
    type=PATH,
    help="Instead: continue the run in this directory, with its settings.",
)
@click.option("--out", type=PATH, help="Run directory.  [default: runs/RECIPE-TIME]")
@click.option("--seed", type=int, help="Seed of initialisation, order and augmentation.  [default: the recipe's]")
@training_options
@click.option("--quiet", "-q", is_flag=True, help="Print only warnings, errors and, at the end, the run directory.")
def train(
    recipe_name: str | None,
    run_dir: Path | None,
    data_dir: Path,
    out: Path | None,
    log: str | None,
    quiet: bool,
    **choices: Any,
) -> None:
    """Train with a recipe, evaluate, and write a run directory with weights, metrics and charts."""
    given = _given_options()
    if run_dir is not None:
        _refuse_options(given, _WITH_RESUME, "--resume continues with the run's settings")
    elif recipe_name is None:
        raise click.UsageError(f"Missing option '--recipe'. Choose from: {', '.join(RECIPES)}")
    from fastcifar.results.records import LAST_FILE
    from fastcifar.terminal import show_summary

    with _progress(log, quiet=quiet) as callback:
        from fastcifar.training.run import resume_training, train_model  # seconds, which the view bridges
        from fastcifar.training.settings import resolve_settings

        if run_dir is not None:
            run_dir = run_dir.parent if run_dir.name == LAST_FILE and run_dir.is_file() else run_dir
            settings, results = resume_training(run_dir, data_dir if "data_dir" in given else None, callback)
        else:
            settings = resolve_settings(get_recipe(recipe_name or ""), **choices)
            run_dir, results = train_model(settings, data_dir, out, callback)
    if process_rank() != "0":
        return
    if quiet:
        click.echo(run_dir)
    else:
        recipe = RECIPES.get(settings.recipe.name, settings.recipe)
        again = command_of_whole_run() if recipe_name else None
        show_summary(recipe, settings, run_dir, results, again=again)


@contextlib.contextmanager
def _progress(log: str | None, *, quiet: bool) -> Iterator["Callback"]:
    """Show the progress of runs, on rank 0 only; `log` names a logger that is called too."""
    from fastcifar.terminal import RunView
    from fastcifar.training.callbacks import Callbacks

    if not quiet:
        may_be_lost(sys.stdout)  # a closed terminal or a full log is no reason to stop
    if hint := launcher_hint():
        click.echo(f"note: {hint}", err=True)
    with RunView(quiet=quiet or process_rank() != "0") as view:
        if log is None:
            yield view
        else:
            from fastcifar.training.tensorboard import TensorBoardLogger

            yield Callbacks(view, TensorBoardLogger())


def command_of_whole_run() -> str:
    """The command that was typed, without the options that shorten the run or are its own."""
    words, context, given = [*command_prefix(), "train"], click.get_current_context(), _given_options()
    for param in context.command.params:
        if param.name is None or param.name not in given or param.name in _OF_ONE_RUN:
            continue
        value = context.params[param.name]
        if isinstance(value, bool):
            words.append(param.opts[-1] if value else param.secondary_opts[-1])
        else:
            words += [param.opts[-1], shlex.quote(str(value))]
    return " ".join(words)


@click.command(short_help="Train several seeds, with statistics.")
@click.argument("folders", metavar="[FOLDER [FOLDER]]", nargs=-1, type=PATH)
@click.option(
    "--recipe", "recipe_names", type=click.Choice(list(RECIPES)), multiple=True, help="A recipe, or two to compare."
)
@click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(1, 1000),
    default=5,
    help="Number of seeds: 42, 43, ...",
)
@click.option(
    "--out",
    type=PATH,
    help="Output folder, new or to continue.  [default: runs/RECIPE-seeds; for two recipes seeds-compared]",
)
@click.option("--paired", is_flag=True, help="Compare seed by seed, for the seeds that both have.")
@click.option(
    "--target-accuracy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Count the epochs to this validation accuracy, 0 to 1.",
)
@training_options
@click.option("--quiet", "-q", is_flag=True, help="Print only warnings, errors and, at the end, the folder.")
def repeat(
    folders: tuple[Path, ...],
    recipe_names: tuple[str, ...],
    num_seeds: int,
    out: Path | None,
    paired: bool,
    target_accuracy: float | None,
    data_dir: Path,
    log: str | None,
    quiet: bool,
    **choices: Any,
) -> None:
    """Train a recipe with several seeds, then print the mean and the spread over the seeds.

    The same command continues where it stopped, and a larger --seeds trains more seeds. Instead of a recipe, give one
    FOLDER from an earlier call to summarise it, or two to compare them.
    """
    if folders:
        _refuse_options(_given_options(), _WITH_FOLDERS, "FOLDER is trained already")
    elif not recipe_names:
        raise click.UsageError(f"Missing option '--recipe'. Choose from: {', '.join(RECIPES)}")
    names = folders or recipe_names
    if len(names) > 2 or len(set(names)) < len(names):
        raise click.UsageError("give one recipe or folder, or two different ones to compare")
    if paired and len(names) < 2:
        raise click.UsageError("--paired compares two recipes or two folders")
    if len(names) == 2:
        out = out or Path("seeds-compared")
        folders = folders or tuple(out / name for name in recipe_names)
    else:
        out = out or (folders[0] if folders else Path("runs", f"{recipe_names[0]}-seeds"))
        folders = folders or (out,)
    if recipe_names:
        with _progress(log, quiet=quiet) as callback:
            from fastcifar.training.repeat import train_seeds
            from fastcifar.training.settings import resolve_settings

            for folder, name in zip(folders, recipe_names, strict=True):
                settings = resolve_settings(get_recipe(name), **choices)
                first = settings.recipe.seed
                train_seeds(settings, range(first, first + num_seeds), data_dir, folder, callback)
    if process_rank() != "0":
        return
    from fastcifar.results.repeats import compare_repeats, read_groups
    from fastcifar.results.seed_tables import build_tables
    from fastcifar.results.strip_plot import write_seeds
    from fastcifar.terminal import show_seed_tables

    groups = read_groups(folders, target_accuracy)
    comparison = compare_repeats(*groups, by_seed=paired) if len(groups) == 2 else None
    written = write_seeds(out, groups, comparison)
    if quiet:
        click.echo(out)
    else:
        show_seed_tables(build_tables(groups, comparison), written)


def _given_options() -> dict[str, str]:
    """The options that the command line gives, by the argument of the command's function."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return {
        param.name: param.opts[0]
        for param in context.command.params
        if param.name and context.get_parameter_source(param.name) is given
    }


def _refuse_options(given: dict[str, str], allowed: tuple[str, ...], why: str) -> None:
    for name, option in given.items():
        if name not in allowed:
            raise click.UsageError(f"{why}: leave out {option}")
