import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from support import containers
from support.containers import NUM_BATCH, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data import cifar10

GOLDEN_VAL = [4, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 24, 25, 32, 33, 36, 38, 39]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with containers.tiny_cifar10():
        yield


def test_content_digest_is_the_sha256_of_the_binary_version() -> None:
    stream = b"".join(containers.binary_files().values())
    num_bytes = 5 * NUM_BATCH * 3073
    assert cifar10.content_digest(TRAIN_IMAGES, TRAIN_LABELS) == hashlib.sha256(stream[:num_bytes]).hexdigest()
    assert cifar10.content_digest(TEST_IMAGES, TEST_LABELS) == hashlib.sha256(stream[num_bytes:]).hexdigest()


def test_content_digest_of_several_chunks() -> None:
    images = np.arange(2500 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2500, 32, 32, 3)
    labels = (np.arange(2500) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], containers.planes(images)], axis=1)
    assert cifar10.content_digest(images, labels) == hashlib.sha256(records.tobytes()).hexdigest()


def test_content_digest_tells_order_channels_and_labels_apart() -> None:
    digests = {
        cifar10.content_digest(images, labels)
        for images, labels in [
            (TEST_IMAGES, TEST_LABELS),
            (TEST_IMAGES[::-1], TEST_LABELS[::-1]),
            (TEST_IMAGES[..., ::-1], TEST_LABELS),
            (TEST_IMAGES.transpose(0, 2, 1, 3), TEST_LABELS),
            (TEST_IMAGES, TEST_LABELS[::-1]),
        ]
    }
    assert len(digests) == 5


def test_split_halves_every_class_of_the_test_set() -> None:
    labels = np.random.default_rng(3).permutation(np.arange(10_000) % 10).astype(np.uint8)
    split = cifar10.split_test_set(labels)
    for half in split.values():
        assert np.bincount(labels[half]).tolist() == [500] * 10
        assert (np.diff(half) > 0).all()
    assert sorted([*split["val"], *split["test"]]) == list(range(10_000))


def test_split_never_changes() -> None:
    split = cifar10.split_test_set((np.arange(40) % 10).astype(np.uint8))
    assert split["val"].tolist() == GOLDEN_VAL
    assert split["test"].tolist() == [position for position in range(40) if position not in GOLDEN_VAL]
