"""The reliability diagram: whether a model that says 90% is right in 90 of 100 cases."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastcifar.results.metrics import Calibration, wilson_interval
from fastcifar.results.style import BLUE, GRID, MUTED, PALE_BLUE, VERMILLION, add_caption, build_figure, styled

_PALE_ORANGE = "#F6C9A8"


def draw_calibration(calibration: Calibration, *, title: str) -> Figure:
    """Draw accuracy over confidence in bins of equal width, and the number of images in each bin.

    Args:
        calibration: from `metrics.calibrate`.
        title: which run this is, shown below the headline.

    Returns:
        A figure 8 inches wide.
    """
    with styled():
        figure = build_figure(4.75, f"Expected calibration error {calibration.error:.2%}", title)
        diagram = figure.add_axes((0.068, 0.195, 0.405, 0.6))
        _plot_reliability(diagram, calibration)
        _plot_counts(figure.add_axes((0.575, 0.195, 0.395, 0.6)), calibration)
        add_caption(
            figure,
            "Confidence: softmax probability of the predicted class. Blue: accuracy of a bin's images, with its 95% "
            "interval. Orange: its gap to\ntheir mean confidence. Expected calibration error: that gap, averaged over "
            "all images. Dashed: where both agree.",
        )
    return figure


def _set_confidences(axes: Axes, heading: str) -> None:
    axes.set(title=heading, xlim=(0, 1), xlabel="confidence")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y")


def _plot_reliability(axes: Axes, calibration: Calibration) -> None:
    """A bar for each bin's accuracy, the gap to its mean confidence, and the diagonal where both agree."""
    _set_confidences(axes, "Accuracy by confidence")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    width = 1 / len(calibration.bins)
    for number, each in enumerate(calibration.bins):
        if each.confidence is None:
            continue
        centre, accuracy = (number + 0.5) * width, each.num_correct / each.num_images
        bar: dict[str, Any] = {"width": 0.86 * width, "zorder": 2}
        axes.bar(centre, accuracy, color=PALE_BLUE, gid=f"accuracy-{number}", **bar)
        axes.bar(centre, each.confidence - accuracy, bottom=accuracy, color=_PALE_ORANGE, gid=f"gap-{number}", **bar)
        axes.plot([centre - 0.43 * width, centre + 0.43 * width], [accuracy] * 2, color=BLUE, linewidth=1.8, zorder=4)
        ends = wilson_interval(each.num_correct, each.num_images)
        axes.plot([centre] * 2, ends, color=BLUE, linewidth=0.8, zorder=3, gid=f"interval-{number}")
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.9, linestyle=(0, (3, 1.5)), zorder=3)


def _plot_counts(axes: Axes, calibration: Calibration) -> None:
    """Images in each bin, with the mean confidence and the accuracy of all of them."""
    _set_confidences(axes, "Images by confidence")
    num_images = np.array([each.num_images for each in calibration.bins])
    width = 1 / len(num_images)
    axes.bar((np.arange(len(num_images)) + 0.5) * width, num_images, width=0.86 * width, color=GRID, zorder=2)
    axes.set_ylim(0, 1.3 * num_images.max())
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    for height, name, value, color in (
        (0.97, "accuracy", calibration.accuracy, BLUE),
        (0.88, "mean confidence", calibration.mean_confidence, VERMILLION),
    ):
        is_right = value > 0.5
        axes.axvline(value, ymax=height, color=color, linewidth=1.2, zorder=3, gid=name)
        axes.annotate(
            f"{name} {value:.1%}",
            (value, height),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if is_right else 5, 0),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="top",
            fontsize=8,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=4,
        )
