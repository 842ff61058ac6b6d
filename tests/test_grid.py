import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from support.containers import TEST_IMAGES
from support.figure_parts import texts

from fastcifar.errors import FastcifarError
from fastcifar.inference.grid import check_grid, draw_grid
from fastcifar.inference.prediction import Guess, Prediction
from fastcifar.results.style import BLUE, PALE_BLUE, write_picture

TOP = (Guess("automobile", 0.5), Guess("cat", 0.3), Guess("deer", 0.125))
NAMES = ["folder/cat.jpg", "new\nline $x^2$.png", "a" * 40 + "b" * 40 + ".png"]


def draw(names: list[str]) -> Figure:
    predictions = [Prediction(name, TOP) for name in names]
    return draw_grid(list(TEST_IMAGES[: len(names)]), predictions, title="runs/x/best.pt: adam89, 3 epochs")


def test_a_grid_shows_pictures_names_and_probabilities() -> None:
    figure = draw(NAMES)
    shown = [image.get_array() for image in figure.findobj(AxesImage) if isinstance(image, AxesImage)]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in shown]), TEST_IMAGES[:3])
    bars = {str(bar.get_gid()): bar for bar in figure.findobj(Rectangle) if isinstance(bar, Rectangle)}
    for picture in range(3):
        widths = [bars[f"bar-{picture}-{rank}"].get_width() for rank in range(3)]
        assert widths == [0.5, 0.3, 0.125]
    assert to_hex(bars["bar-0-0"].get_facecolor()) == BLUE.lower()
    assert to_hex(bars["bar-0-1"].get_facecolor()) == PALE_BLUE.lower()
    assert {"What the model sees in 3 pictures", "runs/x/best.pt: adam89, 3 epochs"} <= set(texts(figure))
    assert {"cat.jpg", r"new\nline $x^2$.png", "a" * 22 + "…" + "b" * 17 + ".png"} <= set(texts(figure))
    assert texts(figure).count("50.0%") == 3
    for axes in figure.axes[1::2]:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["automobile", "cat", "deer"]


@pytest.mark.parametrize(("num_pictures", "height"), [(1, 2.52), (2, 2.52), (3, 4.1), (40, 32.54)])
def test_two_beside_each_other(num_pictures: int, height: float) -> None:
    figure = draw_grid([TEST_IMAGES[0]] * num_pictures, [Prediction("x.png", TOP)] * num_pictures, title="")
    assert figure.get_size_inches().tolist() == pytest.approx([8, height])
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 2 * num_pictures
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_ending_chooses_the_kind_of_file(tmp_path: Path) -> None:
    Image.fromarray(TEST_IMAGES[0]).save(tmp_path / "x.png")
    for name in ("new/out.png", "new/out.SVG"):
        check_grid(tmp_path / name, [tmp_path / "x.png"])
        write_picture(tmp_path / name, draw(["x.png"]))
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert picture.size == (1600, 504)
    svg = (tmp_path / "new" / "out.SVG").read_text()
    assert re.search(r'<g id="bar-0-2">', svg)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.SVG", "out.png"]


def test_grids_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch()
    for name in ("out.gif", "out", ".png"):
        with pytest.raises(FastcifarError, match=rf"picture must end in \.png or \.svg, not '{re.escape(name)}'"):
            check_grid(Path(name), [path])
    with pytest.raises(FastcifarError, match="picture shows at most 40 pictures, not 41: name fewer"):
        check_grid(tmp_path / "out.png", [path] * 41)
    with pytest.raises(FastcifarError, match=r"would replace .*x\.png, which is to be classified: give another name"):
        check_grid(tmp_path / ".." / tmp_path.name / "x.png", [tmp_path / "none.png", path])
