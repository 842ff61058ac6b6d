import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from support.figure_parts import build_predictions, text_of, texts

from fastcifar.data.cifar10 import CLASSES
from fastcifar.results.confusion import draw_confusion
from fastcifar.results.metrics import wilson_interval
from fastcifar.results.samples import CHECK, CROSS, draw_samples


def test_confusion_shows_rates_counts_and_recall() -> None:
    labels = np.array([0] * 8 + [3] * 4)
    predictions = np.array([0] * 6 + [8, 8] + [3, 5, 5, 5])
    figure = draw_confusion(labels, predictions, title="a run")
    shown = {
        (row, column): (text_of(figure, f"rate-{row}-{column}"), text_of(figure, f"count-{row}-{column}"))
        for row in range(10)
        for column in range(10)
    }
    assert {cell: content for cell, content in shown.items() if content != (None, None)} == {
        (0, 0): ("75.0", "6"),
        (0, 8): ("25.0", "2"),
        (3, 3): ("25.0", "1"),
        (3, 5): ("75.0", "3"),
    }
    assert [text_of(figure, f"recall-{label}") for label in (0, 3, 9)] == ["75.0%", "25.0%", "no images"]
    low, high = wilson_interval(7, 12)
    assert f"Test accuracy 58.33%  (95% interval {low:.2%} to {high:.2%})" in texts(figure)
    assert "a run" in texts(figure)
    assert any(text.startswith("12 test images. ") for text in texts(figure))


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
