from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcifar.results.metrics import (
    ClassScores,
    Confusion,
    LabelError,
    calibrate,
    class_scores,
    confusion_matrix,
    rank_label_errors,
    softmax,
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


def build_logits(*rows: dict[int, float]) -> NDArray[np.float32]:
    """Logits whose softmax has these probabilities in each row; the other classes share the rest."""
    probabilities = np.zeros((len(rows), 10))
    for row, given in zip(probabilities, rows, strict=True):
        row[:] = (1 - sum(given.values())) / (10 - len(given))
        row[list(given)] = list(given.values())
    return np.log(probabilities).astype(np.float32)


def test_softmax_keeps_the_order_of_sure_predictions() -> None:
    probabilities = softmax(np.array([[20.0] + [0.0] * 9, [30.0] + [0.0] * 9], np.float32))
    np.testing.assert_allclose(probabilities[:, 1], [1 / (np.e**20 + 9), 1 / (np.e**30 + 9)], rtol=1e-12)
    assert probabilities[0, 0] < probabilities[1, 0] < 1


def test_calibration_by_hand() -> None:
    # Confidences 0.9 (right and wrong), 0.65 (right), 0.35 (wrong); a bin is 1/15 wide.
    logits = build_logits({0: 0.9}, {1: 0.9}, {2: 0.65}, {3: 0.35})
    found = calibrate(np.array([0, 0, 2, 0], np.uint8), logits)
    # 2/4 |1/2 - 0.9| + 1/4 |1 - 0.65| + 1/4 |0 - 0.35|
    assert found.error == pytest.approx(0.375, abs=1e-6)
    assert found.mean_confidence == pytest.approx(0.7, abs=1e-6)
    assert found.accuracy == 0.5
    assert len(found.bins) == 15
    filled = {number: each for number, each in enumerate(found.bins) if each.num_images}
    assert {number: (each.num_images, each.num_correct) for number, each in filled.items()} == {
        5: (1, 0),  # 5/15 < 0.35 <= 6/15
        9: (1, 1),
        13: (2, 1),
    }
    assert [each.confidence for each in filled.values()] == pytest.approx([0.35, 0.65, 0.9], abs=1e-6)
    assert found.bins[0].confidence is None


def test_a_bin_holds_its_upper_end() -> None:
    fifth, sure = np.full((2, 10), -1000.0, np.float32)
    fifth[:5] = sure[7] = 0  # confidences of exactly 3/15 and 1
    found = calibrate(np.array([0, 7]), np.stack([fifth, sure]))
    assert [number for number, each in enumerate(found.bins) if each.num_images] == [2, 14]
    assert found.error == pytest.approx(0.4)  # 1/2 |1 - 0.2|


def test_label_errors_are_ranked_by_the_labels_probability() -> None:
    logits = build_logits({0: 0.05, 4: 0.9}, {1: 0.7}, {2: 0.3, 0: 0.6}, {3: 0.01, 9: 0.5})
    labels = np.array([0, 1, 2, 3], np.uint8)
    found = rank_label_errors(labels, logits, 9)
    assert [error.image for error in found] == [3, 0, 2]  # image 1 is classified as its label says
    assert found[0].label_probability == pytest.approx(0.01, abs=1e-6)
    assert found[1] == LabelError(0, "airplane", found[1].label_probability, "deer", found[1].predicted_probability)
    assert astuple(found[1])[2::2] == pytest.approx((0.05, 0.9), abs=1e-6)
    assert rank_label_errors(labels, logits, 2) == found[:2]
