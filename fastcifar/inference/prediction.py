"""The most likely classes of picture files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastcifar.data.cifar10 import CLASSES
from fastcifar.inference.classifier import Classifier
from fastcifar.inference.pictures import Picture, find_pictures, read_pictures


@dataclass(frozen=True)
class Guess:
    """A class that a picture may belong to."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for a picture.

    Attributes:
        path: the picture's path.
        top: its most likely classes, most likely first; empty if it cannot be read.
        error: why it cannot be read.
        note: what was assumed about it.
    """

    path: str
    top: tuple[Guess, ...]
    error: str | None = None
    note: str | None = None


def predict_pictures(
    classifier: Classifier, paths: list[Path], num_classes: int = 3, *, recursive: bool = False
) -> list[Prediction]:
    """Find the most likely classes of picture files.

    Args:
        classifier: the model.
        paths: the paths of pictures, or of folders of pictures.
        num_classes: the number of classes for each, most likely first.
        recursive: whether to search sub-folders too.

    Returns:
        One prediction for each file, including files that cannot be read.

    Raises:
        FastcifarError: a folder has no pictures, or cannot be read.
    """
    return classify_pictures(classifier, read_pictures(find_pictures(paths, recursive=recursive)), num_classes)


def classify_pictures(classifier: Classifier, pictures: Sequence[Picture], num_classes: int = 3) -> list[Prediction]:
    """Do the same for pictures from `read_pictures`."""
    top: dict[int, tuple[Guess, ...]] = {}
    images = {position: picture.image for position, picture in enumerate(pictures) if picture.image is not None}
    if images:
        found = classifier.logits(torch.from_numpy(np.stack(list(images.values())))).softmax(1).topk(num_classes)
        for position, *row in zip(images, found.values.tolist(), found.indices.tolist(), strict=True):
            top[position] = tuple(Guess(CLASSES[label], share) for share, label in zip(*row, strict=True))
    return [
        Prediction(str(picture.path), top.get(position, ()), picture.error or None, picture.note or None)
        for position, picture in enumerate(pictures)
    ]
