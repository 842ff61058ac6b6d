"""What a table of labels and predictions says: accuracy with its interval, scores of each class, confusions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.cifar10 import CLASSES, NUM_CLASSES

_Z_95 = 1.959964  # standard deviations that hold 95% of a normal distribution


def accuracy_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy (Wilson 1927): what chance in the choice of images leaves open.

    Args:
        num_correct: images classified rightly.
        num_images: of all, at least 1.

    Returns:
        Lower and upper bound, 0..1.
    """
    share, z2 = num_correct / num_images, _Z_95**2
    centre = share + z2 / (2 * num_images)
    half = _Z_95 * math.sqrt(share * (1 - share) / num_images + z2 / (4 * num_images**2))
    scale = 1 + z2 / num_images
    return (centre - half) / scale, (centre + half) / scale


def confusion_matrix(labels: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.int64]:
    """Counts, `(10, 10)` int64, rows by label and columns by prediction.

    Args:
        labels: `(N,)` integers in 0..9.
        predicted: `(N,)` integers in 0..9.
    """
    counts = np.bincount(labels.astype(np.int64) * NUM_CLASSES + predicted, minlength=NUM_CLASSES**2)
    return counts.reshape(NUM_CLASSES, NUM_CLASSES)


def class_scores(counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; one that has nothing to divide by is None.

    Args:
        counts: from `confusion_matrix`.
    """

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    rows = []
    for label, name in enumerate(CLASSES):
        hits, num_images, num_predicted = (int(n) for n in (counts[label, label], counts[label].sum(),
                                                            counts[:, label].sum()))  # fmt: skip
        rows.append({
            "class": name,
            "num_images": num_images,
            "precision": share(hits, num_predicted),
            "recall": share(hits, num_images),
            "f1": share(2 * hits, num_images + num_predicted),
        })  # fmt: skip
    return rows


def top_confusions(counts: NDArray[np.int64], num_confusions: int) -> Sequence[dict[str, Any]]:
    """The most frequent mistakes, most frequent first; ties in the order of the classes.

    Args:
        counts: from `confusion_matrix`.
        num_confusions: how many at most.
    """
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:num_confusions]
    cells = [divmod(int(cell), NUM_CLASSES) for cell in order]
    return [
        {"label": CLASSES[label], "predicted": CLASSES[predicted], "count": int(mistakes[label, predicted])}
        for label, predicted in cells if mistakes[label, predicted]
    ]  # fmt: skip
