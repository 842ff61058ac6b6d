import numpy as np
import pytest
from matplotlib.image import AxesImage
from support.containers import TEST_IMAGES
from support.figure_parts import text_of, texts

from fastcifar.results.label_errors import draw_label_errors
from fastcifar.results.metrics import LabelError

ERRORS = [LabelError(2405, "frog", 0.0002, "cat", 0.9876), LabelError(7, "automobile", 0.25, "truck", 0.5)]


@pytest.mark.parametrize("numbered", [True, False])
def test_images_are_shown_with_label_and_prediction(numbered: bool) -> None:
    images = np.zeros((2406, 32, 32, 3), np.uint8)
    images[[2405, 7]] = TEST_IMAGES[:2]
    figure = draw_label_errors(images, ERRORS, title="a run", numbered=numbered)
    shown = [image.get_array() for image in figure.findobj(AxesImage) if isinstance(image, AxesImage)]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in shown]), TEST_IMAGES[:2])
    assert [text_of(figure, f"line-0-{line}") for line in range(2)] == ["frog <0.1%", "cat 98.8%"]
    assert [text_of(figure, f"line-1-{line}") for line in range(2)] == ["automobile 25.0%", "truck 50.0%"]
    assert text_of(figure, "line-0-2") == ("no. 2,405" if numbered else None)
    assert {"The 2 least plausible labels", "a run"} <= set(texts(figure))


@pytest.mark.parametrize(("num_errors", "num_rows"), [(1, 1), (8, 1), (9, 2), (40, 5)])
def test_eight_beside_each_other(num_errors: int, num_rows: int) -> None:
    figure = draw_label_errors(TEST_IMAGES, ERRORS[1:] * num_errors, title="")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len({round(box.y0, 6) for box in boxes}) == num_rows
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_figure_without_label_errors_says_so() -> None:
    figure = draw_label_errors(TEST_IMAGES[:0], [], title="")
    assert "Every image is classified as its label says" in texts(figure)
