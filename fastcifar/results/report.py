"""A report on runs: one HTML page with their results, charts, settings and machines. Needs no torch."""

import base64
import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2
from matplotlib.figure import Figure

from fastcifar import __version__
from fastcifar.data import cifar10
from fastcifar.errors import one_line
from fastcifar.files import replacing
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.results.charts import comparison_figure, describe_run, left_out, name_runs, run_figures, trust_figures
from fastcifar.results.metrics import wilson_interval
from fastcifar.results.records import (
    RESULTS_FILE,
    EpochMetrics,
    Results,
    RunConfig,
    read_config,
    read_metrics,
    read_results,
)
from fastcifar.results.run_dir import list_runs, seed_dirs
from fastcifar.results.style import as_svg

if TYPE_CHECKING:
    from fastcifar.results.seed_tables import SeedTable

_DESCRIPTIONS = {
    "curves": "Loss, accuracy and learning rate over the epochs",
    "confusion": "Confusion matrix of the test images",
    "samples": "Test images with their predicted classes",
    "calibration": "Reliability diagram: accuracy over confidence",
    "label-errors": "Test images whose label the model finds least plausible",
    "comparison": "Validation loss and accuracy over the epochs",
    "seeds": "Accuracy of every seed, with mean and 95% interval",
}


class _Spread(NamedTuple):
    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class _Chart:
    """A figure for the page: SVG in base64, and a text for those who cannot see it."""

    svg: str
    description: str


@dataclass(frozen=True, eq=False)
class _Run:
    """A run in a report; `results` is None until it is finished."""

    path: Path
    name: str
    anchor: str
    state: str
    config: RunConfig
    metrics: list[EpochMetrics]
    results: Results | None
    charts: list[_Chart]
    left_out: str

    @property
    def parts(self) -> dict[str, str]:
        return describe_run(self.config, len(self.metrics))

    @property
    def best(self) -> EpochMetrics:
        return max(self.metrics, key=lambda line: line.val_accuracy)  # the first of equals

    @property
    def rates(self) -> _Spread:
        return _spread([line.img_per_s for line in self.metrics])

    @property
    def seconds(self) -> _Spread:
        return _spread([line.seconds for line in self.metrics])

    @property
    def total_seconds(self) -> float:
        return sum(line.seconds for line in self.metrics)

    @property
    def whole_recipe(self) -> Recipe | None:
        """The published recipe, if the run is shorter."""
        recipe = RECIPES.get(self.config.recipe)
        if recipe is None:
            return None
        is_short = self.config.epochs < recipe.epochs or self.config.num_train_images < cifar10.SPEC.num_train
        return recipe if is_short else None


@dataclass(frozen=True, eq=False)
class _Seeds:
    """Finished runs that differ only in their seed: mean and spread, over seeds, of accuracies and rates."""

    runs: list[_Run]
    clean: str
    augmented: str
    img_per_s: str


@dataclass(frozen=True, eq=False)
class _Comparison:
    """How several runs compare."""

    chart: _Chart
    seeds: list[_Seeds]
    differences: list[list[str]]


@dataclass(frozen=True, eq=False)
class _SeedFolder:
    """A folder of seeds in a report."""

    name: str
    description: str
    chart: _Chart
    table: "SeedTable"
    settings: dict[str, object]
    devices: tuple[str, ...]


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write a page about one run, a comparison of several, or a folder of seeds; the same input gives the same bytes.

    Args:
        run_dirs: the directories of 1 to 8 different runs, each with at least one finished epoch; or one folder that
            `repeat` filled.
        out: the HTML file to create or replace.

    Raises:
        FastcifarError: a file of a run is missing or unusable, there are too many runs, one is given twice, or the page
            cannot be written.
    """
    content = build_report(run_dirs)
    with replacing(out) as temporary:
        temporary.write_text(content, encoding="utf-8")


def build_report(run_dirs: Sequence[Path]) -> str:
    """The page of `write_report`."""
    seeds = _read_seeds(run_dirs[0]) if len(run_dirs) == 1 and seed_dirs(run_dirs[0]) else None
    if seeds is not None:
        run_dirs = []
    names = name_runs(run_dirs)
    runs = [_read(path, name, f"run-{i}") for i, (path, name) in enumerate(zip(run_dirs, names, strict=True), 1)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastcifar", "results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "counted": _count,
        "duration": _duration,
        "interval": _interval,
        "number": lambda value, digits=0: f"{value:,.{digits}f}",
        "percent": lambda share, digits=2: f"{share:.{digits}%}",
        "shell": lambda path: shlex.quote(str(path)),
    }
    return environment.get_template("report.html.j2").render(
        runs=runs,
        seeds=seeds,
        compared=_compare(runs) if len(runs) > 1 else None,
        nested_rows=_nested_rows,
        num_train=cifar10.SPEC.num_train,
        version=__version__,
    )


def _show(value: object) -> object:
    """A value for the page: HTML from the template's macros, or one line of text, which jinja2 then escapes."""
    return value if hasattr(value, "__html__") else one_line(str(value))


def _read(run_dir: Path, name: str, anchor: str) -> _Run:
    config = read_config(run_dir)  # first, because the error for a folder that is not a run names this file
    return _Run(
        path=run_dir,
        name=name,
        anchor=anchor,
        state=list_runs(run_dir)[0].state,
        config=config,
        metrics=read_metrics(run_dir),
        results=read_results(run_dir) if (run_dir / RESULTS_FILE).exists() else None,
        charts=[_chart(kind, figure) for kind, figure in {**run_figures(run_dir), **trust_figures(run_dir)}.items()],
        left_out=left_out(run_dir),
    )


def _read_seeds(folder: Path) -> _SeedFolder:
    from fastcifar.results.repeats import read_repeats  # imports scipy, which no other page needs
    from fastcifar.results.seed_tables import build_tables
    from fastcifar.results.strip_plot import draw_seeds

    found = read_repeats(folder)
    (table,) = build_tables([found])
    return _SeedFolder(
        name=found.name,
        description=" · ".join(found.describe().values()),
        chart=_chart("seeds", draw_seeds([found])),
        table=table,
        settings=found.shared_settings,
        devices=found.devices,
    )


def _chart(kind: str, figure: Figure) -> _Chart:
    return _Chart(base64.b64encode(as_svg(figure)).decode(), f"{_DESCRIPTIONS[kind]}. {figure.get_label()}.")


def _compare(runs: Sequence[_Run]) -> _Comparison:
    described = [dict(_nested_rows(run.config.settings, {"environment": run.config.environment})) for run in runs]
    names = dict.fromkeys(name for each in described for name in each)
    return _Comparison(
        chart=_chart("comparison", comparison_figure([run.path for run in runs])),
        seeds=_group_by_seed(runs),
        differences=[
            [name, *(each.get(name, "-") for each in described)]
            for name in names
            if len({each.get(name) for each in described}) > 1
        ],
    )


def _group_by_seed(runs: Sequence[_Run]) -> list[_Seeds]:
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        if run.results is not None:
            shared = run.config.settings | {"seed": None, "environment": run.config.environment}
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    found = []
    for group in groups.values():
        best = [run.results.best for run in group if run.results is not None]
        found.append(
            _Seeds(
                runs=group,
                clean=_mean_and_std([100 * scores.test_accuracy for scores in best], "{:.2f}%"),
                augmented=_mean_and_std([100 * scores.test_accuracy_augmented for scores in best], "{:.2f}%"),
                img_per_s=_mean_and_std([run.rates.median for run in group], "{:,.0f}"),
            )
        )
    return found


def _nested_rows(*contents: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Rows of names and values of nested mappings, the names joined by spaces."""
    for name, value in (item for content in contents for item in content.items()):
        if isinstance(value, Mapping):
            yield from _nested_rows(value, prefix=f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spread(values: list[float]) -> _Spread:
    return _Spread(statistics.median(values), min(values), max(values))


def _mean_and_std(values: list[float], form: str) -> str:
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"


def _interval(accuracy: float, num_images: int) -> str:
    low, high = wilson_interval(round(accuracy * num_images), num_images)
    return f"{low:.2%} to {high:.2%}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    if minutes == 0:
        return f"{seconds:.1f} s"
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
