"""Pictures of a run: its curves, its confusion matrix and sample predictions.

`draw_charts` reads a run directory and writes three PNG files. Each figure also has a function of its own that takes
plain data and returns a matplotlib `Figure`. Nothing here needs torch, a display or pyplot's global state.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from fastcifar import cifar10, runs
from fastcifar.cifar10 import CLASSES, NUM_CLASSES, Images, Labels
from fastcifar.files import replacing
from fastcifar.scores import confusion_matrix, wilson_interval

# Hues of Okabe and Ito's palette, which people with any common colour vision can tell apart:
# https://jfly.uni-koeln.de/color/
BLUE, VERMILLION = "#0072B2", "#D55E00"
PALE_BLUE, ERROR_COLORS = "#DCEAF4", ("#FFFFFF", "#FCE0C8", "#F3A768", "#E5812F")  # INK is legible on all of them
INK, MUTED, FAINT, GRID = "#24292F", "#57606A", "#D0D7DE", "#EAEEF2"
CHECK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"  # both are in DejaVu Sans, which matplotlib ships

_WIDTH = 8.0  # inches; 800 px in a README, drawn at twice that for sharp screens
_DPI = 200
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"], "font.size": 8.5, "text.color": INK, "text.parse_math": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "axes.edgecolor": FAINT, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": False,
    "grid.color": GRID, "grid.linewidth": 0.8, "grid.linestyle": "-",
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
}  # fmt: skip

_SAMPLES_PER_CLASS = 3
_MAX_MISTAKES = 2 * NUM_CLASSES


def draw_charts(run_dir: Path) -> list[Path]:
    """Draw curves.png, confusion.png and samples.png into `run_dir / "charts"`.

    Everything is read and drawn before the first file is written, and each file replaces its predecessor atomically.

    Args:
        run_dir: a finished run's directory, with `config.json`, `metrics.jsonl` and `predictions.npz`.

    Returns:
        The paths of the three pictures, 1600 px wide.

    Raises:
        FastcifarError: one of the three files is missing or unusable, or a picture cannot be written.
    """
    title = _describe_run(runs.read_config(run_dir))
    predictions = runs.read_predictions(run_dir)
    images, labels, logits = predictions.images, predictions.labels, predictions.logits
    figures = {
        "curves.png": draw_curves(runs.read_metrics(run_dir), title=title),
        "confusion.png": draw_confusion(labels, logits.argmax(axis=1), title=title),
        "samples.png": draw_samples(images, labels, logits, title=title),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(run_dir / "charts" / name)
        with replacing(paths[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
    return paths


def draw_curves(metrics: Sequence[Mapping[str, float]], *, title: str) -> Figure:
    """Loss and accuracy of training and validation over the epochs, and the learning rate beneath.

    Args:
        metrics: one mapping an epoch, at least one, in order, with `epoch` (from 0; shown from 1), `train_loss`,
            `train_accuracy` (0..1), `val_loss`, `val_accuracy` (0..1) and `lr`.
        title: which run this is, shown beneath the headline.

    Returns:
        A figure 8 inches wide.
    """
    column = {key: np.array([line[key] for line in metrics], np.float64) for key in metrics[0]}
    epochs = column["epoch"] + 1
    best = int(column["val_accuracy"].argmax())  # the first of equals
    best_epoch, best_accuracy = epochs[best], column["val_accuracy"][best]

    with matplotlib.rc_context(_STYLE):
        figure = _build_figure(4.75, f"Best validation accuracy {best_accuracy:.2%}, epoch {best_epoch:.0f}", title)
        grid = figure.add_gridspec(2, 2, height_ratios=(5, 1), hspace=0.14, wspace=0.53,
                                   left=0.068, right=0.894, bottom=0.205, top=0.795)  # fmt: skip
        for panel, name in enumerate(("loss", "accuracy")):
            axes = figure.add_subplot(grid[0, panel])
            strip = figure.add_subplot(grid[1, panel], sharex=axes)
            axes.set_title(name.capitalize(), loc="left", fontsize=9.5, color=INK, pad=9)
            axes.tick_params(labelbottom=False, bottom=False)
            curves = column[f"train_{name}"], column[f"val_{name}"]
            _set_value_range(axes, np.concatenate(curves), is_accuracy=name == "accuracy")
            _plot_curves(axes, epochs, *curves, is_accuracy=name == "accuracy")
            _plot_learning_rate(strip, epochs, column["lr"])
            for each in (axes, strip):
                each.axvline(best_epoch, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            if name == "accuracy":
                axes.plot(best_epoch, best_accuracy, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK,
                          markeredgewidth=1.2, zorder=4, clip_on=False, gid="best")  # fmt: skip
                _label_best(axes, epochs, curves, best, f"best {best_accuracy:.2%}\nepoch {best_epoch:.0f}")
        _add_caption(figure, "Training is measured on augmented images while the weights still change, validation on "
                             "clean images after the epoch;\ntraining accuracy may therefore lie below validation.")
    return figure


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

    with matplotlib.rc_context(_STYLE):
        figure = _build_figure(7.2, headline, title)
        axes = figure.add_axes((0.135, 0.09, 0.675, 0.745))
        # The square root lifts rare confusions off the white; a nearly perfect model is not painted as if it failed.
        norm = PowerNorm(0.5, vmin=0, vmax=max(0.05, float(np.nanmax(errors))))
        colormap = LinearSegmentedColormap.from_list("errors", ERROR_COLORS).with_extremes(bad=PALE_BLUE)
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
                      fontsize=9, weight=weight, color=color, gid=f"rate {row} {column}")  # fmt: skip
            axes.text(column + 0.5, row + 0.76, f"{counts[row, column]:,}", ha="center", va="center",
                      fontsize=7, color=color, alpha=0.85, gid=f"count {row} {column}")  # fmt: skip
        _plot_recall(figure.add_axes((0.838, 0.09, 0.135, 0.745)), counts)
        _add_caption(figure, f"{of_images}. In a cell: percent of the row's true class, and number of images; "
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

    with matplotlib.rc_context(_STYLE):
        figure = _build_figure(height, f"{len(wrong):,} of {len(labels):,} test images classified wrongly", title)

        def add_image(position: int, column: int, top: float, *, with_truth: bool) -> None:
            left = 0.17 + column * pitch
            axes = figure.add_axes((left / _WIDTH, 1 - (top + side) / height, side / _WIDTH, side / height))
            axes.imshow(images[position], interpolation="nearest")
            axes.set(xticks=[], yticks=[], gid=f"sample {position}")
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
            figure.text(0.17 / _WIDTH, 1 - top / height, text, fontsize=9.5, va="top")

        add_heading("The first test images of each class", firsts_top - 0.44)
        for label, positions in enumerate(firsts):
            for row, position in enumerate(positions):
                add_image(int(position), label, firsts_top + row * first_pitch, with_truth=row == 0)
        add_heading("The most confident mistakes", mistakes_top - 0.44)
        for rank, position in enumerate(mistakes):
            row, column = divmod(rank, NUM_CLASSES)
            add_image(int(position), column, mistakes_top + row * mistake_pitch, with_truth=True)
        if not len(mistakes):
            figure.text(0.17 / _WIDTH, 1 - (mistakes_top - 0.17) / height, va="top", color=MUTED,
                        s="None: every test image is classified correctly.")  # fmt: skip
        _add_caption(figure, f"Above: true class. Beneath: {CHECK} right or {CROSS} wrong, predicted class, "
                             "confidence (softmax probability).")
    return figure


def _plot_curves(
    axes: Axes, epochs: NDArray[np.float64], train: NDArray[np.float64], val: NDArray[np.float64], *, is_accuracy: bool
) -> None:
    marker = {"marker": "o", "markersize": 4.0} if len(epochs) <= 10 else {}
    axes.plot(epochs, train, color=VERMILLION, linewidth=1.3, gid="training", **marker)  # type: ignore[arg-type]
    axes.plot(epochs, val, color=BLUE, linewidth=1.8, gid="validation", **marker)  # type: ignore[arg-type]
    bottom, top = axes.get_ylim()
    heights = [(float(np.nan_to_num(values[-1])) - bottom) / (top - bottom) for values in (train, val)]
    for height, name, values, color in zip(
        _spread(heights, gap=0.15), ("training", "validation"), (train, val), (VERMILLION, BLUE), strict=True
    ):
        value = f"{values[-1]:.1%}" if is_accuracy else f"{values[-1]:.3f}"
        axes.text(1.035, height, f"{name}\n{value}", color=color, va="center", linespacing=1.25,
                  transform=axes.transAxes)  # fmt: skip


def _set_value_range(axes: Axes, values: NDArray[np.float64], *, is_accuracy: bool) -> None:
    """Losses from 0, accuracies up to 100%; a loss that is not finite (a run that diverged) does not count."""
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


def _plot_learning_rate(strip: Axes, epochs: NDArray[np.float64], lr: NDArray[np.float64]) -> None:
    strip.fill_between(epochs, lr, step="mid", color=GRID, linewidth=0)
    strip.plot(epochs, lr, color=MUTED, linewidth=1.1, drawstyle="steps-mid",
               marker="o" if len(epochs) <= 10 else "", markersize=3)  # fmt: skip
    strip.set_ylim(0, 1.15 * lr.max() if lr.max() > 0 else 1)
    strip.set_yticks([0, lr.max()] if lr.max() > 0 else [0], labels=["0", f"{lr.max():.3g}"] if lr.max() > 0 else ["0"])
    strip.tick_params(axis="y", length=0)
    strip.spines["left"].set_visible(False)
    strip.text(1.035, 0.5, "learning\nrate", color=MUTED, va="center", linespacing=1.25, transform=strip.transAxes)
    strip.set_xlabel("epoch", labelpad=2)
    first, last = float(epochs[0]), float(epochs[-1])
    margin = 0.02 * (last - first) if last > first else 0.5
    strip.set_xlim(first - margin, last + margin)
    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(first, last)
    too_near = (ticks[1] - ticks[0]) / 3  # to an end, whose labels are drawn always
    strip.set_xticks(sorted({first, last, *(tick for tick in ticks if first + too_near < tick < last - too_near)}))


def _label_best(
    axes: Axes, epochs: NDArray[np.float64], curves: Sequence[NDArray[np.float64]], best: int, text: str
) -> None:
    """Beside the dotted line, on the side with more room, at the bottom unless the curves run there."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    is_late = epochs[best] > (left + right) / 2
    beside = slice(0, best + 1) if is_late else slice(best, None)
    is_near = np.abs(epochs[beside] - epochs[best]) <= max(0.4 * (right - left), 1)  # as wide as the text, or one epoch
    lowest = min(values[beside][is_near].min() for values in curves)
    is_taken = (lowest - bottom) / (top - bottom) < 0.25  # then the curves are flat, and the top is free
    axes.annotate(text, (epochs[best], 0.95 if is_taken else 0.05), xycoords=("data", "axes fraction"),
                  xytext=(-6 if is_late else 6, 0), textcoords="offset points", ha="right" if is_late else "left",
                  va="top" if is_taken else "bottom", linespacing=1.3, zorder=3,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, gid="best label")  # fmt: skip


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
                  color=INK if num_total else MUTED, gid=f"recall {label}")  # fmt: skip
        axes.plot((0, 1), (line, line), color=FAINT, linewidth=0.8)
        if num_total:
            axes.plot(wilson_interval(num_correct, num_total), (line, line), color="#8FBBD9", linewidth=2.6,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot(num_correct / num_total, line, "o", color=BLUE, markersize=4.5, clip_on=False)


def _build_figure(height: float, headline: str, title: str) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    figure.text(0.17 / _WIDTH, 1 - 0.16 / height, headline, fontsize=13, weight="bold", va="top")
    title = textwrap.shorten(title, 125, placeholder=" …")
    figure.text(0.17 / _WIDTH, 1 - 0.45 / height, title, fontsize=8.5, color=MUTED, va="top")
    return figure


def _add_caption(figure: Figure, text: str) -> None:
    figure.text(0.17 / _WIDTH, 0.13 / figure.get_figheight(), text, fontsize=7.5, color=MUTED, va="bottom",
                linespacing=1.4)  # fmt: skip


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move two label heights apart, symmetrically, to at least `gap`, and keep both within the axes."""
    low, high = min(heights), max(heights)
    if high - low >= gap:
        return list(heights)
    middle = min(max((low + high) / 2, gap / 2), 1 - gap / 2)
    upper_first = heights[0] > heights[1]
    return [middle + gap / 2, middle - gap / 2] if upper_first else [middle - gap / 2, middle + gap / 2]


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # In float64, because float32 rounds the surest predictions to the same 1.0 and would lose their order.
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _format_confidence(confidence: float) -> str:
    return ">99.9%" if confidence > 0.9995 else f"{confidence:.1%}"


def _describe_run(config: Mapping[str, Any]) -> str:
    num_epochs, num_images, all_images = config["epochs"], config["train_images"], cifar10.CONTENT.num_train
    parts = [config["recipe"], f"{num_epochs} epoch{'s' if num_epochs != 1 else ''}"]
    if num_images < all_images:
        parts.append(f"{num_images:,} of {all_images:,} training images")
    return " · ".join([*parts, f"seed {config['seed']}", f"{config['precision']} on {config['device_name']}"])
