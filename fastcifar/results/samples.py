"""Test images with their predicted classes."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES, Images, Labels
from fastcifar.results.metrics import softmax
from fastcifar.results.style import (
    BLUE,
    INK,
    MARGIN,
    MUTED,
    VERMILLION,
    add_caption,
    add_image,
    add_text,
    build_figure,
    styled,
)

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

        def add_sample(kind: str, position: int, column: int, top: float, *, with_truth: bool) -> None:
            is_right = predictions[position] == labels[position]
            color, mark = (BLUE, CHECK) if is_right else (VERMILLION, CROSS)
            left = MARGIN + column * pitch
            axes = add_image(figure, images[position], left, top, side, gid=f"{kind}-{position}", frame=color)
            confidence = float(confidences[position])
            lines = [
                (-0.06, "top", f"{mark} {CLASSES[predictions[position]]}", color),
                (-0.245, "top", ">99.9%" if confidence > 0.9995 else f"{confidence:.1%}", MUTED),
            ]
            if with_truth:
                lines.append((1.06, "bottom", CLASSES[labels[position]], INK))
            for height, va, text, ink in lines:
                axes.text(0.5, height, text, ha="center", va=va, fontsize=7.2, color=ink, transform=axes.transAxes)

        add_text(figure, MARGIN, firsts_top - 0.44, "The first test images of each class", fontsize=9.5)
        for label, positions in enumerate(firsts):
            for row, position in enumerate(positions):
                add_sample("first", int(position), label, firsts_top + row * first_pitch, with_truth=row == 0)
        add_text(figure, MARGIN, mistakes_top - 0.44, "The most confident mistakes", fontsize=9.5)
        for rank, position in enumerate(mistakes):
            row, column = divmod(rank, NUM_CLASSES)
            add_sample("mistake", int(position), column, mistakes_top + row * mistake_pitch, with_truth=True)
        if not len(mistakes):
            none = "None: every test image is classified correctly."
            add_text(figure, MARGIN, mistakes_top - 0.17, none, color=MUTED)
        add_caption(
            figure,
            f"Above: true class. Below: {CHECK} right or {CROSS} wrong, predicted class, "
            "confidence (softmax probability).",
        )
    return figure
