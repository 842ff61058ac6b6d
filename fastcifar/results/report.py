"""A report on runs: one HTML page of what they reached, their charts, settings and machines. Needs no torch."""

import datetime
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastcifar import __version__
from fastcifar.data import cifar10
from fastcifar.files import replacing
from fastcifar.recipes import RECIPES
from fastcifar.results import page
from fastcifar.results.charts import comparison_figure, describe_run, left_out, name_runs, run_figures
from fastcifar.results.metrics import wilson_interval
from fastcifar.results.page import Html
from fastcifar.results.records import (
    RESULTS_FILE,
    EpochMetrics,
    Results,
    RunConfig,
    Scores,
    read_config,
    read_metrics,
    read_results,
)
from fastcifar.results.run_dir import list_runs
from fastcifar.results.style import as_svg

_DESCRIPTIONS = {
    "curves": "Loss, accuracy and learning rate over the epochs",
    "confusion": "Confusion matrix of the test images",
    "samples": "Test images with what the model takes them for",
}
_FOOTER = (
    f"Written by fastcifar {__version__}. Intervals are Wilson's 95% score intervals: what so few test images leave "
    "open, without the spread over seeds. Augmented: on test images transformed like those of training."
)


@dataclass(frozen=True, eq=False)
class _Run:
    """What a report says of a run; `results` is None until it is finished."""

    path: Path
    name: str
    anchor: str
    state: str
    config: RunConfig
    metrics: list[EpochMetrics]
    results: Results | None
    figures: dict[str, Figure]

    @property
    def parts(self) -> dict[str, str]:
        return describe_run(self.config, len(self.metrics))

    @property
    def img_per_s(self) -> float:
        return statistics.median(line.img_per_s for line in self.metrics)


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write a page on one run, or on several and how they compare; the same bytes for the same runs.

    Args:
        run_dirs: of 1 to 8 different runs, each with at least one finished epoch.
        out: the HTML file to make or replace.

    Raises:
        FastcifarError: a file of a run is missing or unusable, there are too many runs, one is given twice, or the page
            cannot be written.
    """
    content = build_report(run_dirs)
    with replacing(out) as temporary:
        temporary.write_text(content, encoding="utf-8")


def build_report(run_dirs: Sequence[Path]) -> str:
    """The page of `write_report`."""
    names = name_runs(run_dirs)
    reported = [_read(path, name, f"run-{i}") for i, (path, name) in enumerate(zip(run_dirs, names, strict=True), 1)]
    if len(reported) == 1:
        run = reported[0]
        return page.document(run.name, *_describe(run, level=2), footer=_FOOTER)
    sections = [page.section(run.name, *_describe(run, level=3), anchor=run.anchor) for run in reported]
    return page.document(f"{len(reported)} runs compared", *_compare(reported), *sections, footer=_FOOTER)


def _read(run_dir: Path, name: str, anchor: str) -> _Run:
    config, metrics = read_config(run_dir), read_metrics(run_dir)
    results = read_results(run_dir) if (run_dir / RESULTS_FILE).exists() else None
    return _Run(run_dir, name, anchor, list_runs(run_dir)[0].state, config, metrics, results, run_figures(run_dir))


def _describe(run: _Run, level: int) -> list[Html]:
    """All about one run."""

    def section(heading: str, *parts: str) -> Html:
        return page.section(heading, *parts, anchor=f"{run.anchor}-{heading.lower()}", level=level)

    charts = [
        page.picture(as_svg(figure), f"{_DESCRIPTIONS[name]}. {figure.get_label()}.")
        for name, figure in run.figures.items()
    ]
    if left_out(run.path):
        charts.append(page.paragraph("Confusion matrix and samples follow when the run is finished."))
    return [
        *_summary(run),
        section("Charts", *charts),
        section("Throughput", *_throughput(run)),
        section(
            "Settings",
            page.table(
                ["setting", "value"], page.nested_rows(run.config.settings), label="Settings", num_text_columns=2
            ),
        ),
        section("Environment", *_environment(run)),
    ]


def _summary(run: _Run) -> list[Html]:
    best = max(run.metrics, key=lambda line: line.val_accuracy)  # the first of equals
    parts = [page.paragraph(" · ".join(filter(None, run.parts.values())))]
    rates = [line.img_per_s for line in run.metrics]
    speed = (
        "Throughput",
        f"{run.img_per_s:,.0f} img/s",
        f"training, median of {_count(len(rates), 'epoch')} ({min(rates):,.0f} to {max(rates):,.0f})",
    )
    published = run.config.published_accuracy
    authors = (
        [("Published", f"{published:.0%}", "by the recipe's authors, very likely on augmented images")]
        if published is not None
        else []
    )
    if run.results is None:
        parts += [
            _unfinished(run),
            page.cards(
                [
                    (
                        "Best validation accuracy so far",
                        f"{best.val_accuracy:.2%}",
                        f"epoch {best.epoch + 1}",
                    ),
                    *authors,
                    speed,
                ]
            ),
        ]
        return parts
    num_images, row = run.results.num_test_images, run.results.best
    of = f"best weights (epoch {row.epoch + 1}), {_count(num_images, 'image')}"
    parts.append(
        page.cards(
            [
                (name, f"{getattr(row, key):.2%}", f"95% interval {_interval(getattr(row, key), num_images)}; {of}")
                for name, key in (
                    ("Test accuracy, clean", "test_accuracy"),
                    ("Test accuracy, augmented", "test_accuracy_augmented"),
                )
            ]
            + [*authors, speed]
        )
    )
    recipe, num_train = RECIPES.get(run.config.recipe), cifar10.SPEC.num_train
    epochs, train_size = run.config.epochs, run.config.num_train_images
    if recipe is not None and (epochs < recipe.epochs or train_size < num_train):
        parts.append(
            page.paragraph(
                f"A short run: {epochs} of the recipe's {recipe.epochs} epochs, {train_size:,} of {num_train:,} "
                "training images. The published accuracy is of the whole recipe."
            )
        )
    parts.append(
        page.table(
            ["weights", "validation", "test, clean", "test, augmented"],
            [
                [f"{which} (epoch {row.epoch + 1})", f"{row.val_accuracy:.2%}", *_accuracies(row, num_images)]
                for which, row in (("best", run.results.best), ("last", run.results.last))
            ],
            label="Accuracies",
        )
    )
    return parts


def _unfinished(run: _Run) -> Html:
    done = f"This run is not finished: {len(run.metrics)} of its {run.config.epochs} epochs are. "
    if run.state == "running":
        return page.paragraph(done, "It is still being trained.")
    return page.paragraph(done, "Go on with ", page.code(f"fastcifar train --resume {shlex.quote(str(run.path))}"), ".")


def _throughput(run: _Run) -> list[Html]:
    def row(name: str, values: list[float], digits: int) -> list[str]:
        return [name, *(f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))]

    seconds = [line.seconds for line in run.metrics]
    total = f"{_count(len(seconds), 'epoch')} took {_duration(sum(seconds))}"
    if run.results is not None:
        total += f", the whole run {_duration(run.results.seconds)}"
    columns = [
        "epoch",
        "train loss",
        "train accuracy",
        "validation loss",
        "validation accuracy",
        "learning rate",
        "img/s",
        "seconds",
    ]
    lines = [
        [
            f"{line.epoch + 1}",
            f"{line.train_loss:.4f}",
            f"{line.train_accuracy:.2%}",
            f"{line.val_loss:.4f}",
            f"{line.val_accuracy:.2%}",
            f"{line.lr:.3g}",
            f"{line.img_per_s:,.0f}",
            f"{line.seconds:,.1f}",
        ]
        for line in run.metrics
    ]
    return [
        page.table(
            ["", "median", "least", "greatest"],
            [
                row("training, img/s", [line.img_per_s for line in run.metrics], 0),
                row("epoch with validation, s", seconds, 1),
            ],
            label="Throughput",
        ),
        page.paragraph(f"{total}."),
        page.folded("Every epoch", page.table(columns, lines, label="Every epoch")),
    ]


def _environment(run: _Run) -> list[Html]:
    def show(begun: datetime.datetime | None, environment: dict[str, Any]) -> Html:
        rows = page.nested_rows(environment | ({"begun": begun.isoformat()} if begun else {}))
        return page.table(["", "value"], rows, label="Environment", num_text_columns=2)

    shown = [show(run.config.begun, run.config.environment)]
    for part in run.config.resumed:
        is_other = part.environment != run.config.environment
        after = f"Resumed after {_count(part.num_epochs, 'epoch')}"
        shown += [
            page.paragraph(after + (":" if is_other else " in the same environment:")),
            show(part.begun, part.environment if is_other else {}),
        ]
    return shown


def _compare(reported: Sequence[_Run]) -> list[Html]:
    """What several runs have in common and what not."""
    rows = []
    for run in reported:
        num_images = run.results.num_test_images if run.results else 0
        accuracies = _accuracies(run.results.best, num_images) if run.results else ["", ""]
        rows.append(
            [
                page.link(run.anchor, run.name),
                run.state,
                run.config.recipe,
                str(run.config.seed),
                f"{len(run.metrics)}/{run.config.epochs}",
                f"{max(line.val_accuracy for line in run.metrics):.2%}",
                *accuracies,
                f"{run.img_per_s:,.0f}",
                _duration(sum(line.seconds for line in run.metrics)),
            ]
        )
    columns = [
        "run",
        "state",
        "recipe",
        "seed",
        "epochs",
        "best validation",
        "test, clean",
        "test, augmented",
        "img/s",
        "time",
    ]
    figure = comparison_figure([run.path for run in reported])
    described = [
        dict(page.nested_rows(run.config.settings | {"environment": run.config.environment})) for run in reported
    ]
    names = list(dict.fromkeys(name for each in described for name in each))
    differing = [
        [name, *(each.get(name, "-") for each in described)]
        for name in names
        if len({each.get(name) for each in described}) > 1
    ]
    return [
        page.table(columns, rows, label="Runs", num_text_columns=3),
        page.picture(as_svg(figure), f"Validation loss and accuracy over the epochs. {figure.get_label()}."),
        page.section("Over seeds", *_over_seeds(reported), anchor="over-seeds"),
        page.section(
            "What differs",
            page.table(
                ["", *(run.name for run in reported)],
                differing,
                label="What differs",
                num_text_columns=len(reported) + 1,
            )
            if differing
            else page.paragraph("Neither settings nor environment."),
            anchor="what-differs",
        ),
    ]


def _over_seeds(reported: Sequence[_Run]) -> list[Html]:
    """Mean and spread of the finished runs that share everything but the seed."""
    groups: dict[str, list[_Run]] = {}
    for run in reported:
        if run.results is not None:
            shared = run.config.settings | {"seed": None, "environment": run.config.environment}
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    rows = []
    for group in groups.values():
        best = [run.results.best for run in group if run.results is not None]
        rows.append(
            [
                Html(", ".join(page.link(run.anchor, run.name) for run in group)),
                str(len(group)),
                ", ".join(str(run.config.seed) for run in group),
                *(
                    _mean_and_std([100 * getattr(row, key) for row in best], "{:.2f}%")
                    for key in ("test_accuracy", "test_accuracy_augmented")
                ),
                _mean_and_std([run.img_per_s for run in group], "{:,.0f}"),
            ]
        )
    if not rows:
        return [page.paragraph("None of the runs is finished.")]
    return [
        page.paragraph(
            "Finished runs that share settings and environment, all but the seed: mean ± sample standard "
            "deviation of their n results with the best weights. A seed that comes twice tells little more "
            "than once."
        ),
        page.table(
            ["runs", "n", "seeds", "test, clean", "test, augmented", "img/s"], rows, label="Mean and standard deviation"
        ),
    ]


def _mean_and_std(values: list[float], form: str) -> str:
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"


def _accuracies(row: Scores, num_images: int) -> list[Html]:
    """Clean and augmented, each with its interval."""
    return [
        page.annotated(f"{getattr(row, key):.2%}", _interval(getattr(row, key), num_images))
        for key in ("test_accuracy", "test_accuracy_augmented")
    ]


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
