import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image
from support.figure_parts import build_metrics, build_predictions

from fastcifar.errors import FastcifarError, one_line
from fastcifar.results.confusion import draw_confusion
from fastcifar.results.curves import draw_curves
from fastcifar.results.samples import draw_samples
from fastcifar.results.style import as_png, as_svg, build_figure, write_figures

SVG = "{http://www.w3.org/2000/svg}"


def test_the_same_figure_is_the_same_file() -> None:
    first, second = (draw_curves(build_metrics(4), title="a run") for _ in range(2))
    assert as_svg(first) == as_svg(second)
    assert as_png(first) == as_png(second)


def test_an_svg_has_a_title_its_letters_as_paths_and_no_date() -> None:
    svg = as_svg(draw_curves(build_metrics(4), title="a run"))
    tree = ElementTree.fromstring(svg)
    assert tree.findtext(f"{SVG}title") == "Best validation accuracy 43.00%, epoch 4"
    assert not list(tree.iter(f"{SVG}text"))
    assert not re.search(rb"dc:date|dc:creator|font-family", svg)


def test_every_name_in_an_svg_is_its_own() -> None:
    tested = build_predictions(40, {3: 4.0})
    for figure in (
        draw_curves(build_metrics(4), title=""),
        draw_confusion(tested.labels, tested.logits.argmax(axis=1), title=""),
        draw_samples(tested.images, tested.labels, tested.logits, title=""),
    ):
        names = [element.get("id") for element in ElementTree.fromstring(as_svg(figure)).iter() if element.get("id")]
        assert len(names) == len(set(names))
        assert all(name and re.fullmatch(r"[A-Za-z_][\w.-]*", name) for name in names)


SETTINGS: dict[Any, Any] = {
    "text.usetex": True,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "font.family": "cursive",
    "axes.facecolor": "black",
    "lines.linewidth": 9,
    "svg.fonttype": "none",
    "path.sketch": (1, 100, 2),
    "backend": "module://no_such_backend",
}


def test_matplotlibs_user_settings_change_nothing() -> None:
    def draw() -> tuple[bytes, bytes]:
        figure = draw_curves(build_metrics(4), title="a run")
        return as_png(figure), as_svg(figure)

    expected = draw()
    with matplotlib.rc_context():
        for name, value in SETTINGS.items():
            # Unchecked, like the values of a matplotlibrc of another version.
            dict.update(matplotlib.rcParams, {name: value})
        before = dict(matplotlib.rcParams)
        assert draw() == expected
        assert dict(matplotlib.rcParams) == before


def test_samples_lie_in_an_svg_pixel_by_pixel() -> None:
    tested = build_predictions(16, {})
    tree = ElementTree.fromstring(as_svg(draw_samples(tested.images, tested.labels, tested.logits, title="")))
    pictures = list(tree.iter(f"{SVG}image"))
    assert [(each.get("width"), each.get("height")) for each in pictures] == [("32", "32")] * 16


@pytest.mark.parametrize("title", ["\x01\n", "日本語", "\udcff", "<b>&\"'-->", "$x$", "--"])
def test_any_text_can_be_drawn(title: str) -> None:
    figure = build_figure(2, title, title)
    with Image.open(io.BytesIO(as_png(figure))) as picture:
        assert (picture.format, picture.size) == ("PNG", (1600, 400))
    assert ElementTree.fromstring(as_svg(figure)).findtext(f"{SVG}title") == one_line(title)


def test_unprintable_characters_are_escaped() -> None:
    assert one_line("a b é 日\n\x7f\udcff") == r"a b é 日\n\x7f\udcff"


def test_a_failing_picture_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "charts").write_text("in the way")
    with pytest.raises(FastcifarError, match=r"cannot write .*curves\.png: a file with this name exists"):
        write_figures({"curves": draw_curves(build_metrics(3), title="")}, tmp_path / "charts")
