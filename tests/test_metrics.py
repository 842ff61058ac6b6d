import numpy as np
import pytest

from fastcifar.results.metrics import (
    ClassScores,
    Confusion,
    class_scores,
    confusion_matrix,
    top_confusions,
    wilson_interval,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 9], np.uint8)
PREDICTED = np.array([0, 0, 1, 1, 1, 0, 2, 3])


@pytest.mark.parametrize(
    ("num_correct", "num_total", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (5, 10, 0.2365931, 0.7634069)],
)
def test_wilson_interval(num_correct: int, num_total: int, low: float, high: float) -> None:
    assert wilson_interval(num_correct, num_total) == pytest.approx((low, high), abs=2e-7)


@pytest.mark.parametrize(("num_correct", "num_total"), [(1, 16), (460, 1000), (4600, 5000)])
def test_wilson_interval_ends_where_the_rate_is_barely_plausible(num_correct: int, num_total: int) -> None:
    rate = num_correct / num_total
    for end in wilson_interval(num_correct, num_total):
        assert abs(rate - end) == pytest.approx(1.959964 * (end * (1 - end) / num_total) ** 0.5, rel=1e-6)


def test_counts_are_by_label_and_prediction() -> None:
    counts = confusion_matrix(LABELS, PREDICTED)
    expected = np.zeros((10, 10), int)
    expected[0, 0] = expected[0, 1] = 2
    expected[1, 1] = expected[1, 0] = expected[2, 2] = expected[9, 3] = 1
    np.testing.assert_array_equal(counts, expected)


def test_class_scores() -> None:
    rows = class_scores(confusion_matrix(LABELS, PREDICTED))
    assert rows[0] == ClassScores("airplane", num_images=4, precision=2 / 3, recall=0.5, f1=4 / 7)
    assert rows[9] == ClassScores("truck", num_images=1, precision=None, recall=0.0, f1=0.0)
    assert rows[3] == ClassScores("cat", num_images=0, precision=0.0, recall=None, f1=0.0)
    assert rows[5] == ClassScores("dog", num_images=0, precision=None, recall=None, f1=None)


def test_confusions_are_sorted_and_only_mistakes() -> None:
    assert top_confusions(confusion_matrix(LABELS, PREDICTED), 9) == (
        Confusion("airplane", "automobile", 2),
        Confusion("automobile", "airplane", 1),
        Confusion("truck", "cat", 1),
    )
    assert len(top_confusions(confusion_matrix(LABELS, PREDICTED), 2)) == 2
