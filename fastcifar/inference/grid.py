"""A figure of pictures, each beside its predicted classes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcifar.data.cifar10 import Images
from fastcifar.errors import ArgumentError, counted, one_line
from fastcifar.results.style import (
    BLUE,
    GRID,
    INK,
    MARGIN,
    MUTED,
    PALE_BLUE,
    WIDTH,
    add_axes,
    add_caption,
    add_image,
    add_text,
    build_figure,
    check_picture,
    shorten,
    styled,
)

if TYPE_CHECKING:  # so that pictures that cannot be drawn are refused before torch is imported
    from fastcifar.inference.prediction import Guess, Prediction

_MAX_PICTURES = 40


def check_grid(path: Path, pictures: Sequence[Path]) -> None:
    """Refuse what could not be drawn or written, before any work is done for it.

    Raises:
        FastcifarError: the suffix is not .png or .svg, the file is one of the pictures, or there are too many pictures.
    """
    check_picture(path, "picture")
    if len(pictures) > _MAX_PICTURES:
        raise ArgumentError("picture", f"shows at most {_MAX_PICTURES} pictures, not {len(pictures)}: name fewer")
    if path.exists() and any(path.samefile(picture) for picture in pictures if picture.exists()):
        raise ArgumentError("picture", f"would replace {path}, which is to be classified: give another name")


def draw_grid(images: Sequence[Images], predictions: "Sequence[Prediction]", *, title: str) -> Figure:
    """Draw pictures as the model gets them, with bars of their most likely classes.

    Args:
        images: `(32, 32, 3)` uint8 for each picture, at least one.
        predictions: one for each picture.
        title: which model it is, shown below the headline.

    Returns:
        A figure 8 inches wide, as high as its rows of pictures.
    """
    num_columns = min(2, len(images))
    num_rows = math.ceil(len(images) / num_columns)
    side, row_pitch, first_top, foot = 1.05, 1.58, 1.05, 0.42  # inches
    column_pitch = (WIDTH - MARGIN) / 2
    height = first_top + num_rows * row_pitch - (row_pitch - side) + foot
    headline = f"What the model sees in {counted(len(images), 'picture')}"
    with styled():
        figure = build_figure(height, headline, title)

        for position, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
            row, column = divmod(position, num_columns)
            left, top = MARGIN + column * column_pitch, first_top + row * row_pitch
            name = shorten(one_line(Path(prediction.path).name), 44)
            add_text(figure, left, top - 0.08, name, va="bottom", gid=f"name-{position}")
            add_image(figure, image, left, top, side, gid=f"picture-{position}")
            bars_left = left + side + 0.95
            bars_width = (WIDTH if num_columns == 1 else left + column_pitch) - bars_left - 0.7
            _plot_bars(add_axes(figure, bars_left, top, bars_width, side), prediction.top, position)
        add_caption(
            figure,
            "Each picture as the model gets it: the middle square, 32x32 pixels. "
            "Bars: softmax probability of the most likely classes.",
        )
    return figure


def _plot_bars(axes: Axes, top: "Sequence[Guess]", position: int) -> None:
    """A bar for each class between its name and its probability; the first class stands out."""
    ranks = range(len(top))
    axes.set(xlim=(0, 1), ylim=(len(top) - 0.5, -0.5), xticks=[])
    axes.spines[:].set_visible(False)
    axes.set_yticks(ranks, [guess.class_name for guess in top], fontsize=8.5, va="center")
    axes.tick_params(axis="y", pad=6)
    tracks = axes.barh(ranks, 1, height=0.42, color=GRID)
    probabilities = [f"{guess.probability:.1%}" for guess in top]
    labels = axes.bar_label(tracks, probabilities, padding=6, color=MUTED)
    for first in (axes.get_yticklabels()[0], labels[0]):
        first.set(color=INK, weight="bold")
    for rank, guess in enumerate(top):
        color = PALE_BLUE if rank else BLUE
        axes.barh(rank, guess.probability, height=0.42, color=color, gid=f"bar-{position}-{rank}")
