"""Loss and accuracy over the epochs, of one run or of several in one picture, with the learning rate below."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from fastcifar.results.records import EpochMetrics
from fastcifar.results.style import (
    BLUE,
    GRID,
    INK,
    MARGIN,
    MUTED,
    VERMILLION,
    WIDTH,
    add_axes,
    add_caption,
    add_text,
    build_figure,
    shorten,
    styled,
)

# Okabe and Ito's colours except yellow, which is too pale on white.
RUN_COLORS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C959F")

Column = NDArray[np.float64]


@dataclass(frozen=True)
class ComparedRun:
    """A run as a comparison shows it.

    Attributes:
        name: a short, unique name.
        details: how it differs from the others.
        metrics: as for `draw_curves`.
    """

    name: str
    details: str
    metrics: Sequence[EpochMetrics]


def draw_curves(metrics: Sequence[EpochMetrics], *, title: str) -> Figure:
    """Loss and accuracy of training and validation over the epochs, and the learning rate below.

    Args:
        metrics: those of the epochs in order, at least one. Epochs count from 0 and are shown from 1.
        title: which run this is, shown below the headline.

    Returns:
        A figure 8 inches wide.
    """
    column = _columns(metrics)
    epochs, rates = column["epoch"], column["lr_of_peak"]
    best = column["val_accuracy"].argmax()  # the first of equals
    best_epoch, best_accuracy = epochs[best], column["val_accuracy"][best]
    marker = "o" if len(epochs) <= 10 else ""

    with styled():
        figure = build_figure(4.75, f"Best validation accuracy {best_accuracy:.2%}, epoch {best_epoch:.0f}", title)
        for name, axes, strip in _add_panels(figure, [column], peak=f"{column['lr'].max():.3g}"):
            train, val = column[f"train_{name}"], column[f"val_{name}"]
            _set_value_range(axes, name, np.concatenate([train, val]))
            heights = _spread(_heights(axes, [train[-1], val[-1]]), gap=0.15)
            for kind, values, height, color, width in (
                ("training", train, heights[0], VERMILLION, 1.3),
                ("validation", val, heights[1], BLUE, 1.8),
            ):
                gid = f"{name}-{kind}"
                axes.plot(epochs, values, color=color, linewidth=width, marker=marker, markersize=4, gid=gid)
                _write_beside(axes, 1.035, height, f"{kind}\n{_format_value(name, values[-1])}", color=color)
            strip.fill_between(epochs, rates, step="mid", color=GRID, linewidth=0)
            strip.plot(epochs, rates, color=MUTED, linewidth=1.1, drawstyle="steps-mid", marker=marker, markersize=3)
            for each in (axes, strip):
                each.axvline(best_epoch, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            if name == "accuracy":
                axes.set_title(f"best {best_accuracy:.2%}, epoch {best_epoch:.0f}", loc="right", fontsize=8.5)
                circle: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "linewidth": 1.2, "clip_on": False}
                axes.scatter(best_epoch, best_accuracy, s=64, zorder=4, gid="best", **circle)
        add_caption(
            figure,
            "Training is measured on augmented images while the weights still change, validation on "
            "clean images after the epoch;\ntraining accuracy may therefore lie below validation.",
        )
    return figure


def draw_comparison(compared: Sequence[ComparedRun], *, title: str) -> Figure:
    """Validation loss and accuracy of several runs over the epochs, training loss, and the learning rate below.

    Args:
        compared: 2 to 8 runs.
        title: what they have in common, shown below the headline.

    Returns:
        A figure 8 inches wide, with a row for each run at the bottom.
    """
    columns = [_columns(run.metrics) for run in compared]
    bests = [float(column["val_accuracy"].max()) for column in columns]
    winner = int(np.argmax(bests))
    width = 1.8 if len(compared) <= 4 else 1.2
    is_short = max(column["epoch"][-1] for column in columns) <= 10

    with styled():
        headline = f"Best validation accuracy {bests[winner]:.2%}: {shorten(compared[winner].name, 60)}"
        figure = build_figure(4.96 + 0.2 * len(compared), headline, title)
        for name, axes, strip in _add_panels(figure, columns, peak="peak"):
            shown = [column[f"val_{name}"] for column in columns]
            dashed = [column["train_loss"] for column in columns] if name == "loss" else []
            _set_value_range(axes, name, np.concatenate(shown + dashed))
            for number, (column, color) in enumerate(zip(columns, RUN_COLORS, strict=False), start=1):
                epochs = column["epoch"]
                marker = "o" if is_short or len(epochs) == 1 else ""
                style: dict[str, Any] = {"color": color, "zorder": 3 - number / 10}  # the first lies on top
                val, gid = column[f"val_{name}"], f"{name}-validation-{number}"
                axes.plot(epochs, val, linewidth=width, marker=marker, markersize=4, gid=gid, **style)
                if dashed:
                    train, gid = column["train_loss"], f"loss-training-{number}"
                    axes.plot(epochs, train, linewidth=0.8, linestyle=(0, (3, 1.5)), gid=gid, **style)
                rates = column["lr_of_peak"]
                strip.plot(epochs, rates, linewidth=1.2, drawstyle="steps-mid", marker=marker, markersize=3, **style)
            _label_ends(axes, name, columns)
        _add_rows(figure, compared, columns)
        add_caption(
            figure,
            "Solid: validation, on clean images after the epoch. Dashed: training loss, on augmented "
            "images while the weights still change.",
        )
    return figure


def _columns(metrics: Sequence[EpochMetrics]) -> dict[str, Column]:
    """The metrics by name, `(E,)` each, and the learning rate as a share of its peak; epochs count from 1."""
    names = [field.name for field in fields(EpochMetrics)]
    column = {name: np.array([getattr(line, name) for line in metrics], np.float64) for name in names}
    peak = column["lr"].max() or 1
    return column | {"epoch": column["epoch"] + 1, "lr_of_peak": column["lr"] / peak}


def _add_panels(figure: Figure, columns: Sequence[Mapping[str, Column]], *, peak: str) -> list[tuple[str, Axes, Axes]]:
    """Axes for the loss and the accuracy, each above axes for the learning rate, whose peak is labelled `peak`."""
    first = min(float(column["epoch"][0]) for column in columns)
    last = max(float(column["epoch"][-1]) for column in columns)
    panels = []
    for panel, name in enumerate(("loss", "accuracy")):
        left, width = 0.54 + 4 * panel, 2.61  # inches
        axes = add_axes(figure, left, 0.97, width, 2.18)
        axes.set_title(name.capitalize())
        axes.tick_params(labelbottom=False)
        strip = add_axes(figure, left, 3.34, width, 0.44)
        strip.sharex(axes)
        strip.set_ylim(0, 1.15)
        strip.set_yticks([0, 1], labels=["0", peak])
        _write_beside(strip, 1.035, 0.5, "learning\nrate", color=MUTED)
        _set_epochs(strip, first, last)
        panels.append((name, axes, strip))
    return panels


def _set_value_range(axes: Axes, name: str, values: Column) -> None:
    """Losses from 0, accuracies up to 100%; a loss that is not finite (a diverged run) does not count."""
    finite = values[np.isfinite(values)]
    if name == "accuracy":
        axes.set_ylim(max(0.0, math.floor(10 * finite.min() - 0.3) / 10), 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(0, 1.08 * finite.max() if finite.size else 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")


def _set_epochs(strip: Axes, first: float, last: float) -> None:
    strip.set_xlabel("epoch", labelpad=2)
    strip.tick_params(axis="x", length=3.5)
    margin = 0.02 * (last - first) if last > first else 0.5
    strip.set_xlim(first - margin, last + margin)
    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(first, last)
    too_near = (ticks[1] - ticks[0]) / 3  # to an end, whose labels are always drawn
    strip.set_xticks(sorted({first, last, *(tick for tick in ticks if first + too_near < tick < last - too_near)}))


def _label_ends(axes: Axes, name: str, columns: Sequence[Mapping[str, Column]]) -> None:
    """Beside the axes, write each run's number and last value, with a line from its curve's end in the same colour."""
    left, right = axes.get_xlim()
    values = [column[f"val_{name}"][-1] for column in columns]
    heights = _heights(axes, values)
    label_heights = _spread(heights, gap=0.06)
    for position, column in enumerate(columns):
        end = (column["epoch"][-1] - left) / (right - left)
        height, label_height = heights[position], label_heights[position]
        axes.plot(
            (end, 1.0, 1.05),
            (height, height, label_height),
            linewidth=0.9,
            linestyle=(0, (1, 1.5)),
            color=RUN_COLORS[position],
            transform=axes.transAxes,
            clip_on=False,
            zorder=1,
        )
        _write_beside(axes, 1.065, label_height, f"{position + 1}", weight="bold")
        _write_beside(axes, 1.11, label_height, _format_value(name, values[position]), color=MUTED)


def _write_beside(axes: Axes, left: float, height: float, text: str, **style: Any) -> None:
    """Write to the right of axes; positions are fractions of their size."""
    axes.text(left, height, text, va="center", linespacing=1.25, transform=axes.transAxes, **style)


def _add_rows(figure: Figure, compared: Sequence[ComparedRun], columns: Sequence[Mapping[str, Column]]) -> None:
    """A row for each run: number, colour, name, details and best validation accuracy."""
    top, right = 4.4, WIDTH - MARGIN
    add_text(figure, right, top, "best validation accuracy", va="center", ha="right", color=MUTED, fontsize=7.5)
    for number, (run, column, color) in enumerate(zip(compared, columns, RUN_COLORS, strict=False), start=1):
        top += 0.2
        add_text(figure, MARGIN, top, f"{number}", va="center", weight="bold")
        height = 1 - (top - 0.01) / figure.get_figheight()
        figure.add_artist(Line2D((0.33 / WIDTH, 0.62 / WIDTH), (height, height), color=color, linewidth=2.4))
        add_text(figure, 0.72, top, shorten(run.name, 28), va="center", gid=f"name-{number}")
        add_text(figure, 2.75, top, shorten(run.details, 62), va="center", color=MUTED, fontsize=7.5)
        best = column["val_accuracy"].argmax()
        text = f"{column['val_accuracy'][best]:.2%}, epoch {column['epoch'][best]:.0f}"
        add_text(figure, right, top, text, va="center", ha="right", gid=f"best-{number}")


def _heights(axes: Axes, values: Sequence[float]) -> list[float]:
    """Where values lie in the axes, 0..1; a value that is not finite (a diverged run) lies at 0."""
    bottom, top = axes.get_ylim()
    return [(float(np.nan_to_num(value, posinf=0, neginf=0)) - bottom) / (top - bottom) for value in values]


def _format_value(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "accuracy" else f"{value:.3f}"


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move label heights (0..1) at least `gap` apart, in their order, by as little as possible, within 0..1.

    After subtracting a gap for each label below, the new heights need only be in order: isotonic regression, by pooling
    neighbours.
    """
    order = np.argsort(heights, kind="stable")
    gaps = gap * np.arange(len(heights))
    pools: list[list[float]] = []
    for height in np.array(heights)[order] - gaps:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    shifted = [np.mean(pool) for pool in pools for _ in pool]
    spread = np.empty(len(heights))
    spread[order] = np.clip(shifted, 0, 1 - gaps[-1]) + gaps
    return spread.tolist()
