import numpy as np
from support.figure_parts import text_of, texts

from fastcifar.results.confusion import draw_confusion
from fastcifar.results.metrics import wilson_interval


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
