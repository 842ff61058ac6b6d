"""The confusion matrix of a model on the test images, with each class's recall."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES
from fastcifar.errors import counted
from fastcifar.results.metrics import confusion_matrix, wilson_interval
from fastcifar.results.style import BLUE, FAINT, GRID, INK, MUTED, PALE_BLUE, add_caption, build_figure, styled

# INK is legible on all of these.
_DIAGONAL_COLOR, _ERROR_COLORS = "#DCEAF4", ("#FFFFFF", "#FCE0C8", "#F3A768", "#E5812F")


def draw_confusion(labels: NDArray[np.integer[Any]], predictions: NDArray[np.integer[Any]], *, title: str) -> Figure:
    """The confusion matrix in row rates and counts, with every class's recall beside it.

    Colour shows only the errors, on a separate scale, so that the diagonal does not wash them out.

    Args:
        labels: `(N,)` integers in 0..9, N at least 1.
        predictions: `(N,)` integers in 0..9.
        title: which run this is, shown below the headline.

    Returns:
        A figure 8 inches wide.
    """
    counts = confusion_matrix(labels, predictions)
    num_of_class = counts.sum(axis=1)
    rates = counts / np.maximum(num_of_class, 1)[:, None]
    errors = np.where(np.eye(NUM_CLASSES, dtype=bool), np.nan, rates)
    num_correct, num_total = int(counts.trace()), int(counts.sum())
    low, high = wilson_interval(num_correct, num_total)
    headline = f"Test accuracy {num_correct / num_total:.2%}  (95% interval {low:.2%} to {high:.2%})"

    with styled():
        figure = build_figure(7.2, headline, title)
        axes = figure.add_axes((0.135, 0.09, 0.675, 0.745))
        # The square root makes rare confusions visible; a nearly perfect model does not look as if it failed.
        norm = PowerNorm(0.5, vmin=0, vmax=max(0.05, float(np.nanmax(errors))))
        colormap = LinearSegmentedColormap.from_list("errors", _ERROR_COLORS).with_extremes(bad=_DIAGONAL_COLOR)
        axes.pcolormesh(errors, cmap=colormap, norm=norm, edgecolors=GRID, linewidth=1)
        axes.set(xlim=(0, NUM_CLASSES), ylim=(NUM_CLASSES, 0))
        centres = np.arange(NUM_CLASSES) + 0.5
        axes.set_xticks(centres, CLASSES, fontsize=7, color=INK)
        axes.set_yticks(centres, CLASSES, fontsize=8.5, color=INK)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("predicted class", labelpad=7)
        axes.set_ylabel("true class", labelpad=7)
        axes.spines[:].set_visible(False)
        for row, column in zip(*np.nonzero(counts + np.diag(num_of_class)), strict=True):
            color, weight = (BLUE, "bold") if row == column else (INK, "normal")
            rate, count, cell = f"{100 * rates[row, column]:.1f}", f"{counts[row, column]:,}", f"{row}-{column}"
            centre = column + 0.5
            _write(axes, centre, row + 0.40, rate, fontsize=9, weight=weight, color=color, gid=f"rate-{cell}")
            _write(axes, centre, row + 0.76, count, fontsize=7, color=color, alpha=0.85, gid=f"count-{cell}")
        _plot_recall(figure.add_axes((0.838, 0.09, 0.135, 0.745)), counts)
        add_caption(
            figure,
            f"{counted(num_total, 'test image')}. In a cell: percent of the row's true class, and number of images; "
            "empty means\nnone. Darker orange: more frequent errors. Recall has its 95% interval.",
        )
    return figure


def _plot_recall(axes: Axes, counts: NDArray[np.int64]) -> None:
    """Each class's recall as a dot with its 95% Wilson interval, in line with the matrix's rows."""
    axes.set(xlim=(0, 1), ylim=(NUM_CLASSES, 0), yticks=[])  # the same for every run, so that two can be compared
    axes.set_xticks([0, 1], ["0%", "100%"], fontsize=7.5)
    axes.spines[:].set_visible(False)
    axes.set_title("recall", loc="center", fontsize=8.5, color=MUTED, pad=8)
    for label, (num_correct, num_total) in enumerate(
        zip(counts.diagonal().tolist(), counts.sum(axis=1).tolist(), strict=True)
    ):
        line, gid = label + 0.72, f"recall-{label}"
        axes.plot((0, 1), (line, line), color=FAINT, linewidth=0.8)
        if num_total:
            recall, interval = num_correct / num_total, wilson_interval(num_correct, num_total)
            _write(axes, 0.5, label + 0.36, f"{recall:.1%}", fontsize=9, gid=gid)
            axes.plot(interval, (line, line), color=PALE_BLUE, linewidth=2.6, solid_capstyle="butt")
            axes.plot(recall, line, "o", color=BLUE, markersize=4.5, clip_on=False)
        else:
            _write(axes, 0.5, label + 0.36, "no images", fontsize=7.5, color=MUTED, gid=gid)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, ha="center", va="center", **style)
