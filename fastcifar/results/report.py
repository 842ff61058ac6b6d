"""A report on runs: one HTML page with their results, charts, settings and machines. Needs no torch."""

import base64
import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fastcifar import __version__
from fastcifar.data import cifar10
from fastcifar.errors import FastcifarError, counted, one_line
from fastcifar.files import write_text
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.results.charts import comparison_figure, describe_run, name_runs, run_figures
from fastcifar.results.comparable import comparable_settings
from fastcifar.results.metrics import wilson_interval
from fastcifar.results.records import (
    EpochMetrics,
    Results,
    RunConfig,
    read_config,
    read_metrics,
    read_results,
)
from fastcifar.results.run_dir import read_diverged, run_state, seed_folders
from fastcifar.results.style import as_svg

_DESCRIPTIONS = {
    "curves": "Loss, accuracy and learning rate over the epochs",
    "confusion": "Confusion matrix of the test images",
    "samples": "Test images with their predicted classes",
    "calibration": "Reliability diagram: accuracy over confidence",
    "label-errors": "Test images whose label the model finds least plausible",
    "comparison": "Validation loss and accuracy over the epochs",
    "seeds": "Accuracy of every seed, with mean and 95% interval",
}


@dataclass(frozen=True)
class _Chart:
    """A figure for the page: SVG in base64, and a text for those who cannot see it."""

    svg: str
    description: str


@dataclass(frozen=True, eq=False)
class _Run:
    """A run in a report; `results` is None until it is finished, `diverged` says where its loss was not finite."""

    path: Path
    name: str
    description: str
    anchor: str
    state: str
    diverged: str
    config: RunConfig
    metrics: list[EpochMetrics]
    results: Results | None
    charts: list[_Chart]

    @property
    def rates(self) -> list[float]:
        return [line.img_per_s for line in self.metrics]

    @property
    def seconds(self) -> list[float]:
        return [line.seconds for line in self.metrics]

    @property
    def whole_recipe(self) -> Recipe | None:
        """The published recipe, if the run is shorter."""
        recipe = RECIPES.get(self.config.recipe)
        if recipe is None:
            return None
        is_short = self.config.epochs < recipe.epochs or self.config.num_train_images < cifar10.SPEC.num_train
        return recipe if is_short else None


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write a page about runs, or about folders of seeds; the same input gives the same bytes.

    Args:
        run_dirs: the directories of 1 to 8 different runs, each with at least one finished epoch; or one or two folders
            of seeds that `repeat` filled, or the folder that holds them.
        out: the HTML file to create or replace.

    Raises:
        FastcifarError: a file of a run is missing or unusable, there are too many runs, one is given twice, two folders
            of seeds were tested on different images, or the page cannot be written.
    """
    write_text(out, build_report(run_dirs))


def build_report(run_dirs: Sequence[Path]) -> str:
    """The page of `write_report`."""
    seeds, runs = None, []
    if folders := _find_seeds(run_dirs):
        seeds = _read_seeds(folders, in_order=len(run_dirs) > 1)
    else:
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
        "counted": counted,
        "duration": _duration,
        "interval": _interval,
        "mean_and_std": _mean_and_std,
        "median": statistics.median,
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
    metrics, state = read_metrics(run_dir), run_state(run_dir)
    return _Run(
        path=run_dir,
        name=name,
        description=" · ".join(describe_run(config, len(metrics)).values()),
        anchor=anchor,
        state=state,
        diverged=read_diverged(run_dir) if state == "diverged" else "",
        config=config,
        metrics=metrics,
        results=read_results(run_dir) if state == "finished" else None,
        charts=[_chart(kind, figure) for kind, figure in run_figures(run_dir, with_trust=True).items()],
    )


def _find_seeds(paths: Sequence[Path]) -> list[Path]:
    """The folders of seeds that are named, or that lie in a named folder; empty if runs are named."""
    found = [seed_folders(path) for path in paths]
    folders = [folder for each in found for folder in each]
    if folders:
        for path, each in zip(paths, found, strict=True):
            if not each:
                read_config(path)  # an error if it is not a run either
                raise FastcifarError(f"{path} is a run and {folders[0]} a folder of seeds: a page shows only one kind")
        if len(folders) > 2:
            raise FastcifarError(f"{len(folders)} folders of seeds are too many for one page: give one or two")
    return folders


def _read_seeds(folders: Sequence[Path], *, in_order: bool) -> dict[str, Any]:
    """One or two folders of seeds, and how two differ: the second from the first, in order or as they were begun."""
    from fastcifar.results.repeats import check_same_images, compare_repeats, read_groups  # imports scipy, as no other
    from fastcifar.results.seed_tables import build_tables
    from fastcifar.results.strip_plot import draw_seeds

    groups, comparison, problem = read_groups(folders), None, ""
    if not in_order:
        groups.sort(key=lambda group: group.config.begun.timestamp() if group.config.begun else 0.0)
    if len(groups) > 1:
        check_same_images(*groups)
        try:
            comparison = compare_repeats(*groups)
        except FastcifarError as error:  # the page shows what there is
            problem = str(error)
    tables = build_tables(groups, comparison)
    return {
        "groups": groups,
        "tables": tables[: len(groups)],
        "difference": tables[-1] if comparison is not None else None,
        "problem": problem,
        "chart": _chart("seeds", draw_seeds(groups, comparison)),
        "settings": _side_by_side([dict(_nested_rows(group.shared_settings)) for group in groups]),
    }


def _chart(kind: str, figure: Figure) -> _Chart:
    return _Chart(base64.b64encode(as_svg(figure)).decode(), f"{_DESCRIPTIONS[kind]}. {figure.get_label()}.")


def _compare(runs: Sequence[_Run]) -> dict[str, Any]:
    """How several runs compare: a chart, groups of finished runs that were trained alike, what differs."""
    described = [dict(_nested_rows(run.config.settings, {"environment": run.config.environment})) for run in runs]
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        if run.results is not None:
            shared = comparable_settings(run.config.settings)
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    return {
        "chart": _chart("comparison", comparison_figure([run.path for run in runs])),
        "groups": list(groups.values()),
        "differences": [row for row in _side_by_side(described) if len(set(row[1:])) > 1],
    }


def _side_by_side(described: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """A row for each name, with the value that each mapping has for it."""
    names = dict.fromkeys(name for each in described for name in each)
    return [[name, *(each.get(name, "-") for each in described)] for name in names]


def _nested_rows(*contents: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Rows of names and values of nested mappings, the names joined by spaces."""
    for name, value in (item for content in contents for item in content.items()):
        if isinstance(value, Mapping):
            yield from _nested_rows(value, prefix=f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mean_and_std(values: Iterable[float], form: str) -> str:
    numbers = list(values)
    mean = form.format(statistics.mean(numbers))
    return mean if len(numbers) == 1 else f"{mean} ± {form.format(statistics.stdev(numbers))}"


def _interval(accuracy: float, num_images: int) -> str:
    low, high = wilson_interval(round(accuracy * num_images), num_images)
    return f"{low:.2%} to {high:.2%}"


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    if minutes == 0:
        return f"{seconds:.1f} s"
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
