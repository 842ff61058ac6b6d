"""The style of all figures: colours, fonts, headline and caption, and how they are written to files."""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcifar.data.cifar10 import Images
from fastcifar.errors import ArgumentError, one_line
from fastcifar.files import write_bytes

# Hues of Okabe and Ito's palette, which people with any common colour vision can tell apart:
# https://jfly.uni-koeln.de/color/
BLUE, VERMILLION, PALE_BLUE = "#0072B2", "#D55E00", "#8FBBD9"
INK, MUTED, FAINT, GRID = "#24292F", "#57606A", "#D0D7DE", "#EAEEF2"

WIDTH = 8.0  # inches; 800 px in a README, drawn at twice that for sharp screens
MARGIN = 0.17  # inches
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlepad": 9.0,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "grid.linestyle": "-",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    # Letters as paths look the same everywhere; with a fixed salt the same figure gives the same file.
    "svg.fonttype": "path",
    "svg.hashsalt": "fastcifar",
    "svg.image_inline": True,
}

_DPI = 200
_NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw and render in this package's style, independent of the user's matplotlibrc and settings.

    The backend is not changed: figures are made by matplotlib's object interface, which uses none.
    """
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults | _STYLE):
        yield


def build_figure(height: float, headline: str, title: str) -> Figure:
    """A figure 8 inches wide.

    Args:
        height: in inches.
        headline: what it shows, in a few words; also the figure's label, for those who cannot see it.
        title: which run it shows.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=_DPI, label=one_line(headline))
    add_text(figure, MARGIN, 0.16, one_line(headline), fontsize=13, weight="bold")
    add_text(figure, MARGIN, 0.45, textwrap.shorten(one_line(title), 125, placeholder=" …"), color=MUTED)
    return figure


def add_caption(figure: Figure, text: str) -> None:
    """Write small print at the bottom of a figure."""
    bottom = figure.get_figheight() - 0.13
    add_text(figure, MARGIN, bottom, text, fontsize=7.5, color=MUTED, va="bottom", linespacing=1.4)


def add_text(figure: Figure, left: float, top: float, text: str, *, va: str = "top", **style: Any) -> None:
    """Write on a figure, at this distance in inches from its upper left corner."""
    figure.text(left / WIDTH, 1 - top / figure.get_figheight(), text, va=va, **style)


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes of this size, at this distance from the figure's upper left corner, all in inches."""
    whole = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))


def add_image(
    figure: Figure, image: Images, left: float, top: float, side: float, *, gid: str, frame: str = "none"
) -> Axes:
    """Add an image in a frame of this colour, placed as by `add_axes`."""
    axes = add_axes(figure, left, top, side, side)
    axes.imshow(image, interpolation="none", gid=gid)  # so that an SVG holds the pixels as they are
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=frame, linewidth=1.6)
    return axes


def shorten(text: str, most: int) -> str:
    """At most `most` characters of a text: names usually differ at the start or the end."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-((most - 1) // 2) :]}"


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file, 1600 px wide."""
    return _render(figure, format="png", dpi=_DPI)


def as_svg(figure: Figure) -> bytes:
    """A figure as an SVG file that needs no font and no other file, the same bytes each time."""
    return _render(figure, format="svg", metadata={"Title": str(figure.get_label()), **_NO_METADATA})


_RENDER = {".png": as_png, ".svg": as_svg}


def _render(figure: Figure, **options: Any) -> bytes:
    out = io.BytesIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a run's name may have letters that the font lacks
        figure.savefig(out, **options)
    return out.getvalue()


def check_picture(path: Path, argument: str) -> None:
    """Refuse a file that `write_picture` could not write, before any work is done for it.

    Args:
        path: the file's path.
        argument: the name of the argument that gives it.

    Raises:
        ArgumentError: its suffix is neither .png nor .svg.
    """
    if path.suffix.lower() not in _RENDER:
        raise ArgumentError(argument, f"must end in {' or '.join(_RENDER)}, not {path.name!r}")


def write_picture(path: Path, figure: Figure) -> None:
    """Draw a figure into a .png or .svg file, which replaces its predecessor atomically.

    Raises:
        FastcifarError: the file cannot be written.
    """
    write_bytes(path, _RENDER[path.suffix.lower()](figure))


def write_figures(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG, all of them drawn before the first is written.

    Args:
        figures: the figures by file name without suffix.
        folder: the folder to write to; created if missing.

    Returns:
        The paths of the files, which replace their predecessors atomically.

    Raises:
        FastcifarError: a file cannot be written.
    """
    contents = {}
    for name, figure in figures.items():
        contents[folder / f"{name}.png"] = as_png(figure)
        contents[folder / f"{name}.svg"] = as_svg(figure)
    for path, content in contents.items():
        write_bytes(path, content)
    return list(contents)
