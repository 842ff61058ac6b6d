"""Metrics of labels and predictions: accuracy, scores of each class, confusions, calibration, label errors."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES

NUM_LABEL_ERRORS = 40  # shown
_NUM_BINS = 15


@dataclass(frozen=True)
class ClassScores:
    """How well one class is distinguished from the others; a ratio with denominator 0 is None.

    Attributes:
        class_name: the class.
        num_images: images of that class.
        precision: the share of that class among the images classified as it.
        recall: the share of its images that are recognised.
        f1: the harmonic mean of both.
    """

    class_name: str
    num_images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Confusion:
    """How often images of one class are classified as another."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence lies in one bin.

    Attributes:
        num_images: their number.
        num_correct: how many of them are classified correctly.
        confidence: their mean confidence, 0..1; None if there are no images.
    """

    num_images: int
    num_correct: int
    confidence: float | None


@dataclass(frozen=True)
class Calibration:
    """How far a model's confidence is from its accuracy.

    Attributes:
        error: the expected calibration error, 0..1.
        mean_confidence: the mean over all images, 0..1.
        accuracy: the accuracy on all images, 0..1.
        bins: the bins in order, of equal width.
    """

    error: float
    mean_confidence: float
    accuracy: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class LabelError:
    """An image whose label disagrees with the model.

    Attributes:
        image: its number.
        label: its label.
        label_probability: the model's probability of this label, 0..1: the label's self-confidence.
        predicted: the predicted class.
        predicted_probability: the model's probability of the predicted class, 0..1.
    """

    image: int
    label: str
    label_probability: float
    predicted: str
    predicted_probability: float


def wilson_interval(num_correct: int, num_total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion.

    Unlike the normal approximation it stays within 0..1 and is sensible for few trials and for rates near 0 and 1.

    Args:
        num_correct: successes, 0..`num_total`.
        num_total: trials, at least 1.

    Returns:
        The lower and upper end, each in 0..1. Source: Wilson, JASA 22 (1927), 209-212.
    """
    z = 1.959963984540054  # the normal distribution's 97.5% quantile
    rate = num_correct / num_total
    scale = 1 + z * z / num_total
    centre = (rate + z * z / (2 * num_total)) / scale
    half_width = z / scale * math.sqrt(rate * (1 - rate) / num_total + z * z / (4 * num_total**2))
    # Rounding may leave -1e-17 or 1 + 1e-16 at the ends, where the interval is exactly 0 or 1.
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def confusion_matrix(labels: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.int64]:
    """Counts, `(10, 10)` int64, rows by label and columns by prediction.

    Args:
        labels: `(N,)` integers in 0..9.
        predicted: `(N,)` integers in 0..9.
    """
    counts = np.bincount(labels.astype(np.int64) * NUM_CLASSES + predicted, minlength=NUM_CLASSES**2)
    return counts.reshape(NUM_CLASSES, NUM_CLASSES)


def class_scores(counts: NDArray[np.int64]) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of each class.

    Args:
        counts: from `confusion_matrix`.
    """

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    hits, of_class, as_class = counts.diagonal().tolist(), counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()
    return tuple(
        ClassScores(name, n, share(hit, predicted), share(hit, n), share(2 * hit, n + predicted))
        for name, hit, n, predicted in zip(CLASSES, hits, of_class, as_class, strict=True)
    )


def top_confusions(counts: NDArray[np.int64], num_confusions: int) -> tuple[Confusion, ...]:
    """The most frequent mistakes, most frequent first; ties in the order of the classes.

    Args:
        counts: from `confusion_matrix`.
        num_confusions: how many at most.
    """
    mistakes = counts - np.diag(np.diag(counts))
    found = [
        Confusion(CLASSES[label], CLASSES[predicted], int(mistakes[label, predicted]))
        for label, predicted in zip(*np.nonzero(mistakes), strict=True)
    ]
    return tuple(sorted(found, key=lambda each: -each.count)[:num_confusions])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of the classes.

    In float64, because float32 rounds the most confident predictions to 1.0 and would lose their order.

    Args:
        logits: `(N, 10)` float32, finite.

    Returns:
        `(N, 10)` float64; each row adds up to 1.
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def calibrate(labels: NDArray[Any], logits: NDArray[np.float32]) -> Calibration:
    """The expected calibration error, with 15 bins of equal width.

    Bin m of 15 holds the images whose confidence, the greatest softmax probability, lies in ((m - 1) / 15, m / 15]. The
    error is the mean over all images of |accuracy - mean confidence| of their bin.
    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        labels: `(N,)` integers in 0..9, N at least 1.
        logits: `(N, 10)` float32, finite.
    """
    confidences, is_right = softmax(logits).max(axis=1), logits.argmax(axis=1) == labels
    edges = np.arange(1, _NUM_BINS) / _NUM_BINS
    number = np.searchsorted(edges, confidences, side="left")
    num_images, num_correct, sums = (
        np.bincount(number, weights, _NUM_BINS) for weights in (None, is_right.astype(np.float64), confidences)
    )
    return Calibration(
        error=float(np.abs(num_correct - sums).sum() / len(labels)),
        mean_confidence=float(confidences.mean()),
        accuracy=float(is_right.mean()),
        bins=tuple(
            CalibrationBin(int(images), int(correct), total / images if images else None)
            for images, correct, total in zip(num_images, num_correct, sums.tolist(), strict=True)
        ),
    )


def rank_label_errors(labels: NDArray[Any], logits: NDArray[np.float32], num_errors: int) -> tuple[LabelError, ...]:
    """The images that are classified differently from their label, the least plausible label first.

    They are ordered by the label's self-confidence: the label's softmax probability under a model that was not trained
    on the image. Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    JAIR 70 (2021), 1373-1411.

    Args:
        labels: `(N,)` integers in 0..9.
        logits: `(N, 10)` float32, finite.
        num_errors: how many at most.

    Returns:
        The errors; their numbers are rows of `labels`.
    """
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(own[wrong], kind="stable")][:num_errors]
    return tuple(
        LabelError(
            image=int(row),
            label=CLASSES[labels[row]],
            label_probability=float(own[row]),
            predicted=CLASSES[predicted[row]],
            predicted_probability=float(probabilities[row, predicted[row]]),
        )
        for row in order
    )
