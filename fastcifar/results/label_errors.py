"""Test images whose label a model finds least plausible: candidates for a wrong label."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from fastcifar.data.cifar10 import Images
from fastcifar.results.metrics import LabelError
from fastcifar.results.style import (
    FAINT,
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

_NUM_COLUMNS = 8


def draw_label_errors(images: Images, errors: Sequence[LabelError], *, title: str, numbered: bool = True) -> Figure:
    """Draw each image with its label and the predicted class, the least plausible label first.

    Args:
        images: `(N, 32, 32, 3)` uint8; an error's number is its image's position here.
        errors: errors from `metrics.rank_label_errors`.
        title: which model it is, shown below the headline.
        numbered: whether to show the images' numbers.

    Returns:
        A figure 8 inches wide, as high as its rows of images.
    """
    num_rows = math.ceil(len(errors) / _NUM_COLUMNS)
    pitch, side, row_pitch, first_top = 0.965, 0.8, 1.42 if numbered else 1.28, 0.82  # inches
    height = first_top + max(0.1, num_rows * row_pitch) + 0.4
    with styled():
        headline = f"The {len(errors)} least plausible labels" if len(errors) > 1 else "The least plausible label"
        if not errors:
            headline = "Every image is classified as its label says"
        figure = build_figure(height, headline, title)
        for rank, error in enumerate(errors):
            row, column = divmod(rank, _NUM_COLUMNS)
            left, top = MARGIN + column * pitch, first_top + row * row_pitch
            add_image(figure, images[error.image], left, top, side, gid=f"image-{error.image}", frame=FAINT)
            lines = [
                (f"{error.label} {_format_probability(error.label_probability)}", INK),
                (f"{error.predicted} {_format_probability(error.predicted_probability)}", VERMILLION),
            ]
            for line, (text, color) in enumerate(lines + [(f"no. {error.image:,}", MUTED)] * numbered):
                below = top + side + 0.05 + 0.135 * line
                add_text(figure, left, below, text, fontsize=7, color=color, gid=f"line-{rank}-{line}")
        add_caption(
            figure,
            "Below each image: its label and the predicted class, with their softmax probabilities. The label is "
            "wrong, or the image is\nambiguous, or the model is mistaken: a better model is mistaken less often.",
        )
    return figure


def _format_probability(probability: float) -> str:
    return "<0.1%" if probability < 0.0005 else f"{probability:.1%}"
