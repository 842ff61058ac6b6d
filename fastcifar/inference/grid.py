"""A figure of pictures, each beside its predicted classes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcifar.data.cifar10 import Images
from fastcifar.errors import ArgumentError, one_line
from fastcifar.results.style import (
    BLUE,
    GRID,
    INK,
    MARGIN,
    MUTED,
    WIDTH,
    add_caption,
    build_figure,
    check_picture,
    styled,
    write_picture,
)

if TYPE_CHECKING:  # so that pictures that cannot be drawn are refused before torch is imported
    from fastcifar.inference.prediction import Guess, Prediction

_MAX_PICTURES = 40
_PALE_BLUE = "#8FBBD9"
_MAX_NAME = 44  # characters


def check_grid(path: Path, pictures: Sequence[Path]) -> None:
    """Refuse what `write_grid` could not draw, before any work is done for it.

    Raises:
        FastcifarError: the suffix is not .png or .svg, the file is one of the pictures, or there are too many pictures.
    """
    check_picture(path, "picture")
    if len(pictures) > _MAX_PICTURES:
        raise ArgumentError("picture", f"shows at most {_MAX_PICTURES} pictures, not {len(pictures)}: name fewer")
    if path.exists() and any(path.samefile(picture) for picture in pictures if picture.exists()):
        raise ArgumentError("picture", f"would replace {path}, which is to be classified: give another name")


def write_grid(path: Path, images: Sequence[Images], predictions: "Sequence[Prediction]", *, title: str) -> None:
    """Draw pictures and their predictions into a file.

    Args:
        path: the file to write, `.png` or `.svg`; replaced atomically.
        images: see `draw_grid`.
        predictions: see `draw_grid`.
        title: which model it is.

    Raises:
        FastcifarError: the file cannot be written.
    """
    write_picture(path, draw_grid(images, predictions, title=title))


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
    headline = "What the model sees in " + (f"{len(images)} pictures" if len(images) > 1 else "a picture")
    with styled():
        figure = build_figure(height, headline, title)

        def add_axes(left: float, top: float, width: float) -> Axes:
            return figure.add_axes((left / WIDTH, 1 - (top + side) / height, width / WIDTH, side / height))

        for position, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
            row, column = divmod(position, num_columns)
            left, top = MARGIN + column * column_pitch, first_top + row * row_pitch
            name = _shorten(one_line(Path(prediction.path).name))
            figure.text(left / WIDTH, 1 - (top - 0.08) / height, name, va="bottom", gid=f"name-{position}")
            axes = add_axes(left, top, side)
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[], gid=f"picture-{position}")
            axes.spines[:].set_visible(False)
            bars_left = left + side + 0.95
            bars_width = (WIDTH if num_columns == 1 else left + column_pitch) - bars_left - 0.7
            _plot_bars(add_axes(bars_left, top, bars_width), prediction.top, position)
        add_caption(
            figure,
            "Each picture as the model gets it: the middle square, 32x32 pixels. "
            "Bars: softmax probability of the most likely classes.",
        )
    return figure


def _plot_bars(axes: Axes, top: "Sequence[Guess]", position: int) -> None:
    axes.set(xlim=(0, 1), ylim=(len(top) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for rank, guess in enumerate(top):
        color, weight = (BLUE, "bold") if rank == 0 else (_PALE_BLUE, "normal")
        axes.barh(rank, 1, height=0.42, color=GRID)
        axes.barh(rank, guess.probability, height=0.42, color=color, gid=f"bar-{position}-{rank}")
        axes.annotate(
            guess.class_name,
            (0, rank),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=INK if rank == 0 else MUTED,
            weight=weight,
        )
        axes.annotate(
            f"{guess.probability:.1%}",
            (1, rank),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK if rank == 0 else MUTED,
            weight=weight,
        )


def _shorten(name: str) -> str:
    """Shorten a long name in the middle, because names usually differ at the start or the end."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half:]}"
