"""Charts of one run, and a chart that compares several, as PNG and SVG files.

Nothing here needs torch, a display or pyplot's global state.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastcifar.data import cifar10
from fastcifar.errors import FastcifarError, counted, one_line
from fastcifar.results.calibration import draw_calibration
from fastcifar.results.confusion import draw_confusion
from fastcifar.results.curves import RUN_COLORS, ComparedRun, draw_comparison, draw_curves
from fastcifar.results.label_errors import draw_label_errors
from fastcifar.results.metrics import NUM_LABEL_ERRORS, calibrate, rank_label_errors
from fastcifar.results.records import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    RunConfig,
    read_config,
    read_metrics,
    read_predictions,
)
from fastcifar.results.run_dir import remove_leftovers
from fastcifar.results.samples import draw_samples
from fastcifar.results.style import write_figures

MAX_RUNS = len(RUN_COLORS)  # in one comparison


def write_charts(run_dir: Path, out: Path | None = None) -> list[Path]:
    """Draw a run's charts, all of them before the first file is written.

    Args:
        run_dir: the directory of a run with at least one finished epoch.
        out: the folder to write to; None for `run_dir / "charts"`.

    Returns:
        The paths of the files: `curves`, and for a finished run `confusion` and `samples`, each as .png and .svg. Each
        replaces its predecessor atomically.

    Raises:
        FastcifarError: a file of the run is missing or unusable, or a chart cannot be written.
    """
    remove_leftovers(run_dir)
    return write_figures(run_figures(run_dir), out or run_dir / "charts")


def write_comparison(run_dirs: Sequence[Path], out: Path) -> list[Path]:
    """Draw several runs in one picture.

    Args:
        run_dirs: the directories of 2 to 8 different runs, each with at least one finished epoch.
        out: the folder to write `comparison.png` and `comparison.svg` to.

    Raises:
        FastcifarError: as for `write_charts`; there are too many runs, or one is given twice.
    """
    return write_figures({"comparison": comparison_figure(run_dirs)}, out)


def run_figures(run_dir: Path, *, with_trust: bool = False) -> dict[str, Figure]:
    """A run's figures by name, as `write_charts` writes them.

    Args:
        run_dir: the run directory.
        with_trust: for a finished run, add figures on how far to trust its model and its test labels.
    """
    config, metrics = read_config(run_dir), read_metrics(run_dir)
    title = " · ".join(describe_run(config, len(metrics)).values())
    figures = {"curves": draw_curves(metrics, title=title)}
    if left_out(run_dir):
        return figures
    tested = read_predictions(run_dir)
    figures["confusion"] = draw_confusion(tested.labels, tested.logits.argmax(axis=1), title=title)
    figures["samples"] = draw_samples(tested.images, tested.labels, tested.logits, title=title)
    if with_trust:
        errors = rank_label_errors(tested.labels, tested.logits, NUM_LABEL_ERRORS)
        figures["calibration"] = draw_calibration(calibrate(tested.labels, tested.logits), title=title)
        figures["label-errors"] = draw_label_errors(tested.images, errors, title=title, numbered=False)
    return figures


def left_out(run_dir: Path) -> str:
    """Which charts a run does not have yet and why, in one line; empty if it has all."""
    if (run_dir / PREDICTIONS_FILE).exists() or (run_dir / RESULTS_FILE).exists():
        return ""
    return f"{run_dir} is not finished: confusion and samples are left out, because the model is tested at the end"


def comparison_figure(run_dirs: Sequence[Path]) -> Figure:
    """The figure of `write_comparison`: shared properties are in its title, the others beside the runs' names."""
    names = name_runs(run_dirs)
    configs = [read_config(run_dir) for run_dir in run_dirs]
    metrics = [read_metrics(run_dir) for run_dir in run_dirs]
    described = [describe_run(config, len(lines)) for config, lines in zip(configs, metrics, strict=True)]
    shared = shared_parts(described)
    compared = [
        ComparedRun(name, " · ".join(text for part, text in each.items() if part not in shared), lines)
        for name, each, lines in zip(names, described, metrics, strict=True)
    ]
    title = " · ".join(shared.values())
    return draw_comparison(compared, title=f"{len(names)} runs" + (f", each {title}" if title else ""))


def name_runs(run_dirs: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's name, or its path if another run's folder has the same name.

    Raises:
        FastcifarError: there are more than 8, or one is given twice.
    """
    if len(run_dirs) > MAX_RUNS:
        raise FastcifarError(f"{len(run_dirs)} runs are too many for one picture: give at most {MAX_RUNS}")
    places = [path.resolve() for path in run_dirs]
    for path, place in zip(run_dirs, places, strict=True):
        if places.count(place) > 1:
            raise FastcifarError(f"{path} is given twice")
    names = [path.absolute().name for path in run_dirs]
    return [one_line(name if names.count(name) == 1 else str(path)) for name, path in zip(names, run_dirs, strict=True)]


def describe_run(config: RunConfig, num_epochs: int) -> dict[str, str]:
    """Describe a run in parts of a few words; how many training images it uses is left out if it uses all.

    Args:
        config: from `read_config`.
        num_epochs: the number of finished epochs.
    """
    all_images = cifar10.SPEC.num_train
    of = f"{num_epochs:,} of " if num_epochs < config.epochs else ""
    parts = {"recipe": config.recipe, "epochs": of + counted(config.epochs, "epoch")}
    if config.num_train_images < all_images:
        parts["images"] = f"{config.num_train_images:,} of {all_images:,} training images"
    return parts | {"seed": f"seed {config.seed}", "device": f"{config.precision} on {config.device_name}"}


def shared_parts(described: Sequence[dict[str, str]]) -> dict[str, str]:
    """The parts in which runs described by `describe_run` agree."""
    return {part: text for part, text in described[0].items() if all(each.get(part) == text for each in described)}
