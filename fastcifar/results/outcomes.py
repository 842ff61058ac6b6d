"""How a model does on the test images: its confusion matrix, and samples with what it takes them for."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES, Images, Labels
from fastcifar.results.metrics import confusion_matrix, wilson_interval
from fastcifar.results.style import (
    BLUE,
    FAINT,
    GRID,
    INK,
    MARGIN,
    MUTED,
    STYLE,
    VERMILLION,
    WIDTH,
    add_caption,
    build_figure,
)

CHECK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"  # both are in DejaVu Sans, which matplotlib ships

_PALE_BLUE, _ERROR_COLORS = "#DCEAF4", ("#FFFFFF", "#FCE0C8", "#F3A768", "#E5812F")  # INK is legible on all of them
_SAMPLES_PER_CLASS = 3
_MAX_MISTAKES = 2 * NUM_CLASSES


def draw_confusion(
    labels: NDArray[np.integer[Any]], predictions: NDArray[np.integer[Any]], *, title: str
) -> Figure:
    """The confusion matrix in row rates and counts, with every class's recall beside it.

    Colour shows only the errors, on a scale of their own, so that the diagonal does not wash them out.

    Args:
        labels: `(N,)` integers in 0..9, N at least 1.
        predictions: `(N,)` integers in 0..9.
        title: which run this is, shown beneath the headline.

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
    of_images = f"{num_total:,} test image{'s' if num_total != 1 else ''}"

    with matplotlib.rc_context(STYLE):
        figure = build_figure(7.2, headline, title)
        axes = figure.add_axes((0.135, 0.09, 0.675, 0.745))
        # The square root lifts rare confusions off the white; a nearly perfect model is not painted as if it failed.
        norm = PowerNorm(0.5, vmin=0, vmax=max(0.05, float(np.nanmax(errors))))
        colormap = LinearSegmentedColormap.from_list("errors", _ERROR_COLORS).with_extremes(bad=_PALE_BLUE)
        axes.pcolormesh(errors, cmap=colormap, norm=norm, edgecolors=GRID, linewidth=1)
        axes.set(xlim=(0, NUM_CLASSES), ylim=(NUM_CLASSES, 0))
        centres = np.arange(NUM_CLASSES) + 0.5
        axes.set_xticks(centres, CLASSES, fontsize=7, color=INK)
        axes.set_yticks(centres, CLASSES, fontsize=8.5, color=INK)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("predicted class", labelpad=7)
        axes.set_ylabel("true class", labelpad=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for row, column in zip(*np.nonzero(counts + np.diag(num_of_class)), strict=True):
            color, weight = (BLUE, "bold") if row == column else (INK, "normal")
            axes.text(column + 0.5, row + 0.40, f"{100 * rates[row, column]:.1f}", ha="center", va="center",
                      fontsize=9, weight=weight, color=color, gid=f"rate-{row}-{column}")  # fmt: skip
            axes.text(column + 0.5, row + 0.76, f"{counts[row, column]:,}", ha="center", va="center",
                      fontsize=7, color=color, alpha=0.85, gid=f"count-{row}-{column}")  # fmt: skip
        _plot_recall(figure.add_axes((0.838, 0.09, 0.135, 0.745)), counts)
        add_caption(figure, f"{of_images}. In a cell: percent of the row's true class, and number of images; "
                             "empty means\nnone. The deeper the orange, the commoner the error. "
                             "Recall has its 95% interval.")
    return figure


def draw_samples(images: Images, labels: Labels, logits: NDArray[np.float32], *, title: str) -> Figure:
    """The first test images of each class and the most confident mistakes, with prediction and confidence.

    Args:
        images: `(N, 32, 32, 3)` uint8, N at least 1.
        labels: `(N,)` uint8 in 0..9.
        logits: `(N, 10)` float32, finite; the confidence is their softmax's maximum.
        title: which run this is, shown beneath the headline.

    Returns:
        A figure 8 inches wide, as high as its rows of images.
    """
    predictions, confidences = logits.argmax(axis=1), _probabilities(logits).max(axis=1)
    firsts = [np.flatnonzero(labels == label)[:_SAMPLES_PER_CLASS] for label in range(NUM_CLASSES)]
    wrong = np.flatnonzero(predictions != labels)
    mistakes = wrong[np.argsort(-confidences[wrong], kind="stable")][:_MAX_MISTAKES]
    first_rows = max(len(positions) for positions in firsts)
    mistake_rows = math.ceil(len(mistakes) / NUM_CLASSES)

    pitch, side, first_pitch, mistake_pitch = 0.776, 0.68, 1.06, 1.24  # inches
    firsts_top = 1.30
    mistakes_top = firsts_top + first_rows * first_pitch + 0.62
    height = mistakes_top + max(0.1, mistake_rows * mistake_pitch) + 0.3

    with matplotlib.rc_context(STYLE):
        figure = build_figure(height, f"{len(wrong):,} of {len(labels):,} test images classified wrongly", title)

        def add_image(kind: str, position: int, column: int, top: float, *, with_truth: bool) -> None:
            left = MARGIN + column * pitch
            axes = figure.add_axes((left / WIDTH, 1 - (top + side) / height, side / WIDTH, side / height))
            # Without interpolation an SVG holds the 32x32 pixels as they are.
            axes.imshow(images[position], interpolation="none", gid=f"{kind}-{position}")
            axes.set(xticks=[], yticks=[])
            is_right = predictions[position] == labels[position]
            color, mark = (BLUE, CHECK) if is_right else (VERMILLION, CROSS)
            axes.spines[:].set(visible=True, color=color, linewidth=1.6)
            axes.text(0.5, -0.06, f"{mark} {CLASSES[predictions[position]]}", ha="center", va="top", fontsize=7.2,
                      color=color, transform=axes.transAxes)  # fmt: skip
            axes.text(0.5, -0.245, _format_confidence(float(confidences[position])), ha="center", va="top",
                      fontsize=7.2, color=MUTED, transform=axes.transAxes)  # fmt: skip
            if with_truth:
                axes.text(0.5, 1.06, CLASSES[labels[position]], ha="center", va="bottom", fontsize=7.2, color=INK,
                          transform=axes.transAxes)  # fmt: skip

        def add_heading(text: str, top: float) -> None:
            figure.text(MARGIN / WIDTH, 1 - top / height, text, fontsize=9.5, va="top")

        add_heading("The first test images of each class", firsts_top - 0.44)
        for label, positions in enumerate(firsts):
            for row, position in enumerate(positions):
                add_image("first", int(position), label, firsts_top + row * first_pitch, with_truth=row == 0)
        add_heading("The most confident mistakes", mistakes_top - 0.44)
        for rank, position in enumerate(mistakes):
            row, column = divmod(rank, NUM_CLASSES)
            add_image("mistake", int(position), column, mistakes_top + row * mistake_pitch, with_truth=True)
        if not len(mistakes):
            figure.text(MARGIN / WIDTH, 1 - (mistakes_top - 0.17) / height, va="top", color=MUTED,
                        s="None: every test image is classified correctly.")  # fmt: skip
        add_caption(figure, f"Above: true class. Beneath: {CHECK} right or {CROSS} wrong, predicted class, "
                             "confidence (softmax probability).")
    return figure


def _plot_recall(axes: Axes, counts: NDArray[np.int64]) -> None:
    """Each class's recall as a dot with its 95% Wilson interval, in line with the matrix's rows."""
    recalls = [(int(row[label]), int(row.sum())) for label, row in enumerate(counts)]
    axes.set(xlim=(0, 1), ylim=(NUM_CLASSES, 0), yticks=[])  # the same for every run, so that two can be compared
    axes.set_xticks([0, 1], ["0%", "100%"], fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("recall", fontsize=8.5, color=MUTED, pad=8)
    for label, (num_correct, num_total) in enumerate(recalls):
        text, line = f"{num_correct / num_total:.1%}" if num_total else "no images", label + 0.72
        axes.text(0.5, label + 0.36, text, ha="center", va="center", fontsize=9 if num_total else 7.5,
                  color=INK if num_total else MUTED, gid=f"recall-{label}")  # fmt: skip
        axes.plot((0, 1), (line, line), color=FAINT, linewidth=0.8)
        if num_total:
            axes.plot(wilson_interval(num_correct, num_total), (line, line), color="#8FBBD9", linewidth=2.6,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot(num_correct / num_total, line, "o", color=BLUE, markersize=4.5, clip_on=False)


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # In float64, because float32 rounds the surest predictions to the same 1.0 and would lose their order.
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _format_confidence(confidence: float) -> str:
    return ">99.9%" if confidence > 0.9995 else f"{confidence:.1%}"
