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
from fastcifar.results.style import BLUE, GRID, INK, MARGIN, MUTED, VERMILLION, WIDTH, add_caption, build_figure, styled

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
    epochs, best = column["epoch"], _best(column)
    best_epoch, best_accuracy = epochs[best], column["val_accuracy"][best]

    with styled():
        figure = build_figure(4.75, f"Best validation accuracy {best_accuracy:.2%}, epoch {best_epoch:.0f}", title)
        for name, axes, strip in _add_panels(figure, bottom=0.974):
            is_accuracy = name == "accuracy"
            curves = column[f"train_{name}"], column[f"val_{name}"]
            _set_value_range(axes, np.concatenate(curves), is_accuracy=is_accuracy)
            _plot_curves(axes, epochs, *curves, name=name)
            strip.fill_between(epochs, column["lr"], step="mid", color=GRID, linewidth=0)
            strip.plot(
                epochs,
                column["lr"],
                color=MUTED,
                linewidth=1.1,
                drawstyle="steps-mid",
                marker="o" if len(epochs) <= 10 else "",
                markersize=3,
            )
            peak = float(column["lr"].max())
            _set_learning_rates(strip, {0: "0", peak: f"{peak:.3g}"} if peak > 0 else {0: "0"}, "learning\nrate")
            _set_epochs(strip, float(epochs[0]), float(epochs[-1]))
            for each in (axes, strip):
                each.axvline(best_epoch, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            if is_accuracy:
                axes.plot(
                    best_epoch,
                    best_accuracy,
                    "o",
                    markersize=8,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=1.2,
                    zorder=4,
                    clip_on=False,
                    gid="best",
                )
                _label_best(axes, epochs, curves, best, f"best {best_accuracy:.2%}\nepoch {best_epoch:.0f}")
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
    table_height = 0.36 + 0.2 * len(compared)
    last_epoch = max(float(column["epoch"][-1]) for column in columns)

    with styled():
        headline = f"Best validation accuracy {bests[winner]:.2%}: {_shorten(compared[winner].name, 60)}"
        figure = build_figure(4.75 + table_height, headline, title)
        for name, axes, strip in _add_panels(figure, bottom=0.83 + table_height):
            is_accuracy = name == "accuracy"
            shown = [column[f"val_{name}"] for column in columns]
            _set_value_range(
                axes,
                np.concatenate(shown if is_accuracy else [*shown, *(column["train_loss"] for column in columns)]),
                is_accuracy=is_accuracy,
            )
            _set_epochs(strip, min(float(column["epoch"][0]) for column in columns), last_epoch)
            for position, (column, color) in enumerate(zip(columns, RUN_COLORS, strict=False)):
                style: dict[str, Any] = {"color": color, "zorder": 3 - position / 10}  # the first lies on top
                marker = "o" if last_epoch <= 10 or len(column["epoch"]) == 1 else ""
                axes.plot(
                    column["epoch"],
                    column[f"val_{name}"],
                    linewidth=1.8 if len(compared) <= 4 else 1.2,
                    marker=marker,
                    markersize=4,
                    gid=f"{name}-validation-{position + 1}",
                    **style,
                )
                if not is_accuracy:
                    axes.plot(
                        column["epoch"],
                        column["train_loss"],
                        linewidth=0.8,
                        linestyle=(0, (3, 1.5)),
                        gid=f"loss-training-{position + 1}",
                        **style,
                    )
                peak = float(column["lr"].max())
                strip.plot(
                    column["epoch"],
                    column["lr"] / (peak or 1),
                    linewidth=1.2,
                    drawstyle="steps-mid",
                    marker=marker,
                    markersize=3,
                    **style,
                )
            _set_learning_rates(strip, {0: "0", 1: "peak"}, "learning\nrate")
            ends = [(column["epoch"][-1], values[-1]) for column, values in zip(columns, shown, strict=True)]
            _label_ends(axes, ends, is_accuracy=is_accuracy)
        _add_rows(figure, compared, columns, top=0.2 + table_height)
        add_caption(
            figure,
            "Solid: validation, on clean images after the epoch. Dashed: training loss, on augmented "
            "images while the weights still change.",
        )
    return figure


def _columns(metrics: Sequence[EpochMetrics]) -> dict[str, Column]:
    """The metrics by name, `(E,)` each; epochs count from 1."""
    names = [field.name for field in fields(EpochMetrics)]
    column = {name: np.array([getattr(line, name) for line in metrics], np.float64) for name in names}
    return column | {"epoch": column["epoch"] + 1}


def _best(column: Mapping[str, Column]) -> int:
    return int(column["val_accuracy"].argmax())  # the first of equals


def _add_panels(figure: Figure, bottom: float) -> list[tuple[str, Axes, Axes]]:
    """Axes for the loss and the accuracy, each above axes for the learning rate; `bottom` inches stay free."""
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=(5, 1),
        hspace=0.14,
        wspace=0.53,
        left=0.068,
        right=0.894,
        bottom=bottom / height,
        top=1 - 0.974 / height,
    )
    panels = []
    for panel, name in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(grid[0, panel])
        axes.set_title(name.capitalize(), loc="left", fontsize=9.5, color=INK, pad=9)
        axes.tick_params(labelbottom=False, bottom=False)
        panels.append((name, axes, figure.add_subplot(grid[1, panel], sharex=axes)))
    return panels


def _plot_curves(axes: Axes, epochs: Column, train: Column, val: Column, *, name: str) -> None:
    marker = {"marker": "o", "markersize": 4.0} if len(epochs) <= 10 else {}
    axes.plot(epochs, train, color=VERMILLION, linewidth=1.3, gid=f"{name}-training", **marker)  # type: ignore[arg-type]
    axes.plot(epochs, val, color=BLUE, linewidth=1.8, gid=f"{name}-validation", **marker)  # type: ignore[arg-type]
    heights = _heights(axes, [train[-1], val[-1]])
    for height, kind, values, color in zip(
        _spread(heights, gap=0.15), ("training", "validation"), (train, val), (VERMILLION, BLUE), strict=True
    ):
        axes.text(
            1.035,
            height,
            f"{kind}\n{_format_value(values[-1], is_accuracy=name == 'accuracy')}",
            color=color,
            va="center",
            linespacing=1.25,
            transform=axes.transAxes,
        )


def _set_value_range(axes: Axes, values: Column, *, is_accuracy: bool) -> None:
    """Losses from 0, accuracies up to 100%; a loss that is not finite (a diverged run) does not count."""
    finite = values[np.isfinite(values)]
    if is_accuracy:
        axes.set_ylim(max(0.0, math.floor(10 * finite.min() - 0.3) / 10), 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(0, 1.08 * finite.max() if finite.size else 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _set_learning_rates(strip: Axes, ticks: Mapping[float, str], label: str) -> None:
    """From 0 to a little above the highest tick."""
    strip.set_ylim(0, 1.15 * max(ticks) or 1)
    strip.set_yticks(list(ticks), labels=list(ticks.values()))
    strip.tick_params(axis="y", length=0)
    strip.spines["left"].set_visible(False)
    strip.text(1.035, 0.5, label, color=MUTED, va="center", linespacing=1.25, transform=strip.transAxes)


def _set_epochs(strip: Axes, first: float, last: float) -> None:
    strip.set_xlabel("epoch", labelpad=2)
    margin = 0.02 * (last - first) if last > first else 0.5
    strip.set_xlim(first - margin, last + margin)
    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(first, last)
    too_near = (ticks[1] - ticks[0]) / 3  # to an end, whose labels are always drawn
    strip.set_xticks(sorted({first, last, *(tick for tick in ticks if first + too_near < tick < last - too_near)}))


def _label_best(axes: Axes, epochs: Column, curves: Sequence[Column], best: int, text: str) -> None:
    """Label the dotted line on the side with more room, at the bottom unless the curves run there."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    is_late = epochs[best] > (left + right) / 2
    beside = slice(0, best + 1) if is_late else slice(best, None)
    is_near = np.abs(epochs[beside] - epochs[best]) <= max(0.4 * (right - left), 1)  # as wide as the text, or one epoch
    lowest = min(values[beside][is_near].min() for values in curves)
    is_taken = (lowest - bottom) / (top - bottom) < 0.25  # then the curves are flat, and the top is free
    axes.annotate(
        text,
        (epochs[best], 0.95 if is_taken else 0.05),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if is_late else 6, 0),
        textcoords="offset points",
        ha="right" if is_late else "left",
        va="top" if is_taken else "bottom",
        linespacing=1.3,
        zorder=3,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        gid="best-label",
    )


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float]], *, is_accuracy: bool) -> None:
    """Beside the axes, write each run's number and last value, with a line from its curve's end in the same colour."""
    left, right = axes.get_xlim()
    heights = _heights(axes, [value for _, value in ends])
    for position, ((epoch, value), height, label_height) in enumerate(
        zip(ends, heights, _spread(heights, gap=0.058), strict=True)
    ):
        axes.plot(
            ((epoch - left) / (right - left), 1.0, 1.05),
            (height, height, label_height),
            linewidth=0.9,
            linestyle=(0, (1, 1.5)),
            color=RUN_COLORS[position],
            transform=axes.transAxes,
            clip_on=False,
            zorder=1,
        )
        axes.text(1.065, label_height, f"{position + 1}", weight="bold", va="center", transform=axes.transAxes)
        axes.text(
            1.11,
            label_height,
            _format_value(value, is_accuracy=is_accuracy),
            va="center",
            color=MUTED,
            transform=axes.transAxes,
        )


def _add_rows(
    figure: Figure, compared: Sequence[ComparedRun], columns: Sequence[Mapping[str, Column]], top: float
) -> None:
    """A row for each run: number, colour, name, details and best validation accuracy; `top` in inches from below."""
    height = figure.get_figheight()

    def add_text(left: float, line: float, text: str, **style: Any) -> None:
        figure.text(left / WIDTH, (top - 0.2 * line) / height, text, va="center", **style)

    right = WIDTH - MARGIN
    add_text(right, 0, "best validation accuracy", color=MUTED, fontsize=7.5, ha="right")
    for line, (run, column, color) in enumerate(zip(compared, columns, RUN_COLORS, strict=False), start=1):
        best = _best(column)
        y = (top - 0.2 * line + 0.01) / height
        add_text(MARGIN, line, f"{line}", weight="bold")
        swatch = Line2D((0.33 / WIDTH, 0.62 / WIDTH), (y, y), color=color, linewidth=2.4)
        figure.add_artist(swatch)
        add_text(0.72, line, _shorten(run.name, 28), gid=f"name-{line}")
        add_text(2.75, line, _shorten(run.details, 62), color=MUTED, fontsize=7.5)
        add_text(
            right,
            line,
            f"{column['val_accuracy'][best]:.2%}, epoch {column['epoch'][best]:.0f}",
            ha="right",
            gid=f"best-{line}",
        )


def _heights(axes: Axes, values: Sequence[float]) -> list[float]:
    """Where values lie in the axes, 0..1; a value that is not finite (a diverged run) lies at 0."""
    bottom, top = axes.get_ylim()
    return [(float(np.nan_to_num(value, posinf=0, neginf=0)) - bottom) / (top - bottom) for value in values]


def _format_value(value: float, *, is_accuracy: bool) -> str:
    return f"{value:.1%}" if is_accuracy else f"{value:.3f}"


def _shorten(text: str, most: int) -> str:
    """At most `most` characters of a text, from its beginning and its end."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-((most - 1) // 2) :]}"


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move label heights (0..1) at least `gap` apart, in their order, by as little as possible, within 0..1.

    After subtracting a gap for each label below, the new heights need only be in order: isotonic regression, by pooling
    neighbours.
    """
    order = sorted(range(len(heights)), key=lambda label: heights[label])
    pools: list[list[float]] = []
    for rank, label in enumerate(order):
        pools.append([heights[label] - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    shifted = [float(np.mean(pool)) for pool in pools for _ in pool]
    highest = 1 - (len(heights) - 1) * gap
    spread = list(heights)
    for rank, (label, low) in enumerate(zip(order, shifted, strict=True)):
        spread[label] = min(max(low, 0.0), highest) + rank * gap
    return spread
