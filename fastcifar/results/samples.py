"""Test images with their predicted classes."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES, Images, Labels
from fastcifar.results.metrics import softmax
from fastcifar.results.style import BLUE, INK, MARGIN, MUTED, VERMILLION, WIDTH, add_caption, build_figure, styled

CHECK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"  # both are in DejaVu Sans, which matplotlib ships

_SAMPLES_PER_CLASS = 3
_MAX_MISTAKES = 2 * NUM_CLASSES


def draw_samples(images: Images, labels: Labels, logits: NDArray[np.float32], *, title: str) -> Figure:
    """Draw the first test images of each class and the most confident mistakes, with prediction and confidence.

    Args:
        images: `(N, 32, 32, 3)` uint8, N at least 1.
        labels: `(N,)` uint8 in 0..9.
        logits: `(N, 10)` float32, finite; the confidence is their softmax's maximum.
        title: which run this is, shown below the headline.

    Returns:
        A figure 8 inches wide, as high as its rows of images.
    """
    predictions, confidences = logits.argmax(axis=1), softmax(logits).max(axis=1)
    firsts = [np.flatnonzero(labels == label)[:_SAMPLES_PER_CLASS] for label in range(NUM_CLASSES)]
    wrong = np.flatnonzero(predictions != labels)
    mistakes = wrong[np.argsort(-confidences[wrong], kind="stable")][:_MAX_MISTAKES]
    first_rows = max(len(positions) for positions in firsts)
    mistake_rows = math.ceil(len(mistakes) / NUM_CLASSES)

    pitch, side, first_pitch, mistake_pitch = 0.776, 0.68, 1.06, 1.24  # inches
    firsts_top = 1.30
    mistakes_top = firsts_top + first_rows * first_pitch + 0.62
    height = mistakes_top + max(0.1, mistake_rows * mistake_pitch) + 0.3

    with styled():
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
            axes.text(
                0.5,
                -0.06,
                f"{mark} {CLASSES[predictions[position]]}",
                ha="center",
                va="top",
                fontsize=7.2,
                color=color,
                transform=axes.transAxes,
            )
            axes.text(
                0.5,
                -0.245,
                _format_confidence(float(confidences[position])),
                ha="center",
                va="top",
                fontsize=7.2,
                color=MUTED,
                transform=axes.transAxes,
            )
            if with_truth:
                axes.text(
                    0.5,
                    1.06,
                    CLASSES[labels[position]],
                    ha="center",
                    va="bottom",
                    fontsize=7.2,
                    color=INK,
                    transform=axes.transAxes,
                )

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
            figure.text(
                MARGIN / WIDTH,
                1 - (mistakes_top - 0.17) / height,
                va="top",
                color=MUTED,
                s="None: every test image is classified correctly.",
            )
        add_caption(
            figure,
            f"Above: true class. Below: {CHECK} right or {CROSS} wrong, predicted class, "
            "confidence (softmax probability).",
        )
    return figure


def _format_confidence(confidence: float) -> str:
    return ">99.9%" if confidence > 0.9995 else f"{confidence:.1%}"
