"""What a table of labels and predictions says: accuracy with its interval, scores of each class, confusions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar10 import CLASSES, NUM_CLASSES


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others; a share that has nothing to divide by is None.

    Attributes:
        class_name: which class.
        num_images: of that class.
        precision: the share of that class among the images taken for it.
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
    """How often images of one class are taken for another."""

    label: str
    predicted: str
    count: int


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

    rows = []
    for label, name in enumerate(CLASSES):
        hits, num_images, num_predicted = (
            int(n) for n in (counts[label, label], counts[label].sum(), counts[:, label].sum())
        )
        precision, recall = share(hits, num_predicted), share(hits, num_images)
        rows.append(ClassScores(name, num_images, precision, recall, share(2 * hits, num_images + num_predicted)))
    return tuple(rows)


def top_confusions(counts: NDArray[np.int64], num_confusions: int) -> tuple[Confusion, ...]:
    """The most frequent mistakes, most frequent first; ties in the order of the classes.

    Args:
        counts: from `confusion_matrix`.
        num_confusions: how many at most.
    """
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:num_confusions]
    cells = [divmod(int(cell), NUM_CLASSES) for cell in order]
    return tuple(
        Confusion(CLASSES[label], CLASSES[predicted], int(mistakes[label, predicted]))
        for label, predicted in cells
        if mistakes[label, predicted]
    )
