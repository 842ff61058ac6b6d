import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from support.figure_parts import build_predictions, texts

from fastcifar.data.cifar10 import CLASSES
from fastcifar.results.samples import CHECK, CROSS, draw_samples


def samples_of(figure: Figure) -> list[tuple[int, list[str]]]:
    """Position and texts of every image shown, in drawing order."""
    shown: list[tuple[int, list[str]]] = []
    for axes in figure.axes:
        assert isinstance(axes, Axes)
        kind, position = str(axes.images[0].get_gid()).split("-")
        assert kind == ("first" if len(shown) < 30 else "mistake")
        shown.append((int(position), [text.get_text() for text in axes.texts]))
    return shown


def test_samples_are_the_first_of_each_class_then_the_most_confident_mistakes() -> None:
    predictions = build_predictions(100, wrong={13: 3.0, 55: 9.0, 70: 5.0})
    figure = draw_samples(predictions.images, predictions.labels, predictions.logits, title="a run")
    shown = samples_of(figure)
    assert [position for position, _ in shown[:30]] == [row * 10 + label for label in range(10) for row in range(3)]
    assert [position for position, _ in shown[30:]] == [55, 70, 13]
    right = np.exp(2) / (np.exp(2) + 9)
    assert shown[0][1] == [f"{CHECK} {CLASSES[0]}", f"{right:.1%}", CLASSES[0]]
    assert shown[30][1] == [f"{CROSS} {CLASSES[6]}", f"{np.exp(9) / (np.exp(9) + 9):.1%}", CLASSES[5]]
    assert "3 of 100 test images classified wrongly" in texts(figure)
    (picture,) = [child for child in figure.axes[0].get_children() if isinstance(child, AxesImage)]
    np.testing.assert_array_equal(picture.get_array(), predictions.images[0])
    assert picture.get_interpolation() == "none"


def test_samples_without_mistakes_say_so() -> None:
    predictions = build_predictions(16, wrong={})
    figure = draw_samples(predictions.images, predictions.labels, predictions.logits, title="")
    assert len(samples_of(figure)) == 16
    assert "None: every test image is classified correctly." in texts(figure)
