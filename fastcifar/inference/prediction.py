"""The likeliest classes of picture files."""

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
    """A class that a picture may be of."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model takes a picture for.

    Attributes:
        path: of the picture.
        top: its likeliest classes, likeliest first; none of a file that cannot be read.
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
    """Find the likeliest classes of picture files.

    Args:
        classifier: the model.
        paths: of pictures, or of folders of them.
        num_classes: how many for each, likeliest first.
        recursive: whether the folders' sub-folders are searched, too.

    Returns:
        One for each file, those that cannot be read included.

    Raises:
        FastcifarError: a folder holds no pictures, or cannot be read.
    """
    return classify_pictures(classifier, read_pictures(find_pictures(paths, recursive=recursive)), num_classes)


def classify_pictures(classifier: Classifier, pictures: Sequence[Picture], num_classes: int = 3) -> list[Prediction]:
    """Do the same for pictures that `read_pictures` has read."""
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
