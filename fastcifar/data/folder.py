"""The folder that `prepare` fills: found, validated and read into memory."""

import hashlib
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import beton, cifar10
from fastcifar.data.beton import remedy
from fastcifar.data.cifar10 import SPLITS, Images, Labels, SplitName
from fastcifar.errors import FastcifarError
from fastcifar.files import read_json, reading

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
STAGING = ".preparing"


def is_prepared(data_dir: Path) -> bool:
    """Whether the folder has a manifest. Its data is checked when it is loaded."""
    return os.path.exists(data_dir / MANIFEST)  # noqa: PTH110 (unlike Path.exists, False for an impossible name)


def is_untouched(data_dir: Path) -> bool:
    """Whether the folder is missing, or empty apart from the temporary files of an interrupted `prepare`.

    Raises:
        FastcifarError: the folder cannot be read.
    """
    with reading(data_dir):
        return not data_dir.exists() or all(path.name == STAGING for path in data_dir.iterdir())


def beton_path(data_dir: Path, split: SplitName) -> Path:
    """The path of a split's file in a data folder."""
    return data_dir / f"{split}.beton"


@dataclass(frozen=True)
class Split:
    """A split in memory.

    Attributes:
        images: `(N, 32, 32, 3)` uint8.
        labels: `(N,)` uint8.
        indices: `(N,)` int64 global sample indices: train 0..49,999; val and test 50,000 + position in the official
            test set.
    """

    images: Images
    labels: Labels
    indices: NDArray[np.int64]


def load_train(data_dir: Path) -> Split:
    """Read the training split, after checking its file's structure, hash and content.

    Args:
        data_dir: a folder that `prepare` filled.

    Raises:
        FastcifarError: a file or the manifest is missing, or differs from what `prepare` wrote.
    """
    images, labels = _read_split(data_dir, "train", _read_manifest(data_dir))
    return Split(images, labels, np.arange(len(labels)))


def load_val_and_test(data_dir: Path) -> tuple[Split, Split]:
    """Read the validation and the test split, with the same checks.

    Args:
        data_dir: a folder that `prepare` filled.

    Raises:
        FastcifarError: a file or the manifest is missing, or differs from what `prepare` wrote.
    """
    manifest, num_train = _read_manifest(data_dir), cifar10.SPEC.num_train
    is_val = _unpack_mask(manifest["val_mask"])
    val = Split(*_read_split(data_dir, "val", manifest), num_train + np.flatnonzero(is_val))
    test = Split(*_read_split(data_dir, "test", manifest), num_train + np.flatnonzero(~is_val))
    if cifar10.content_digest(*official_test_set(val, test)) != cifar10.SPEC.official_test_digest:
        raise FastcifarError(f"{data_dir / MANIFEST} is damaged (val_mask): {remedy(data_dir)}")
    return val, test


def official_test_set(val: Split, test: Split) -> tuple[Images, Labels]:
    """The images and labels of both splits in the official test set's order."""
    order = np.argsort(np.concatenate([val.indices, test.indices]))
    return np.concatenate([val.images, test.images])[order], np.concatenate([val.labels, test.labels])[order]


def verify_data(data_dir: Path) -> None:
    """Check everything in a data folder, as loading does.

    Raises:
        FastcifarError: something is missing or damaged.
    """
    load_train(data_dir)
    load_val_and_test(data_dir)


def _read_split(data_dir: Path, split: SplitName, manifest: dict[str, Any]) -> tuple[Images, Labels]:
    """Read one .beton file; check its structure, and its two digests against the manifest."""
    path = beton_path(data_dir, split)
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FastcifarError(f"cannot read {path}: {error.strerror}: {remedy(data_dir)}") from error
    with ThreadPoolExecutor(max_workers=1) as executor:  # the two digests take equally long
        file_hash = executor.submit(lambda: hashlib.sha256(content.data).hexdigest())
        images, labels = beton.parse(content, path, num_images_of(split))
        digest = cifar10.content_digest(images, labels)
    for name, found in (("content_sha256", digest), ("file_sha256", file_hash.result())):
        if found != manifest["splits"][split][name]:
            raise FastcifarError(f"{path} is damaged (its {name} is not the manifest's): {remedy(data_dir)}")
    return images, labels


def _unpack_mask(mask: str) -> NDArray[np.bool_]:
    """Undo `_pack_mask`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=cifar10.SPEC.num_test).astype(np.bool_)


def num_images_of(split: SplitName) -> int:
    """The number of images in a split."""
    return cifar10.SPEC.num_train if split == "train" else cifar10.SPEC.num_test // 2


def _read_manifest(data_dir: Path) -> dict[str, Any]:
    """The manifest, after checking that it describes CIFAR-10 as this package splits it."""
    path = data_dir / MANIFEST
    if not path.exists():
        command = f"fastcifar prepare --out {shlex.quote(str(data_dir))}"
        raise FastcifarError(f"{data_dir} holds no prepared data (no {MANIFEST}): run `{command}`")
    try:
        manifest = read_json(path)
    except FastcifarError as error:
        raise FastcifarError(f"{error}: {remedy(data_dir)}") from error
    try:
        sound = manifest["format"] == MANIFEST_FORMAT and all(
            entry["num_images"] == num_images_of(split)
            and entry["content_sha256"] == cifar10.SPEC.digests[split]
            and isinstance(entry["file_sha256"], str)
            for split in SPLITS
            for entry in [manifest["splits"][split]]
        )
        sound = sound and _unpack_mask(manifest["val_mask"]).sum() == num_images_of("val")
    except (KeyError, TypeError, IndexError, ValueError):
        sound = False
    if not sound:
        what = "it does not describe CIFAR-10 as split here"
        raise FastcifarError(f"{path} is damaged or stale ({what}): {remedy(data_dir)}")
    return dict(manifest)
