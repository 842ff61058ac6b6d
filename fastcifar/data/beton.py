"""FFCV's .beton file, written, validated and read without FFCV.

FFCV trusts every byte of a file: some damage makes it crash, some makes it return wrong pixels. So a file is used only
after `parse` has checked every entry. The bytes are those of FFCV's own writer with one worker process; that writer
needs shared memory, of which a container may have too little, and it hangs if a worker fails.

The layout, little-endian: a header, one descriptor per field, one metadata record per sample, then (from the next
multiple of the page size) pages of pixel data, then the allocation table up to the end of the file.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar10 import IMAGE_SIZE, NUM_CLASSES, Images, Labels
from fastcifar.errors import FastcifarError
from fastcifar.files import writing

_VERSION = 2
_IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1 << 21, 1 << 31  # FFCV's limits
_RAW_MODE = 1  # an image's pixels as they are, not as JPEG

_HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_start", "<u8")]
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", 1024)])
_SAMPLE = np.dtype(
    {
        "names": ["mode", "width", "height", "pointer", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
_ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_FIELDS = np.array([(2, b"image", 0), (1, b"label", 0)], _FIELD)  # FFCV's RGBImageField and IntField


def _build_metadata(labels: NDArray[Any], page_size: int) -> dict[str, NDArray[Any]]:
    """The parts of a file other than its pages, in the file's order. An image never crosses a page."""
    num_images, images_per_page = len(labels), page_size // _IMAGE_BYTES
    samples_end = _HEADER.itemsize + _FIELDS.nbytes + num_images * _SAMPLE.itemsize
    pages_start = -(-samples_end // page_size) * page_size
    table_start = pages_start + -(-num_images // images_per_page) * page_size
    header = np.array([(_VERSION, len(_FIELDS), page_size, num_images, table_start)], _HEADER)
    samples, table = np.zeros(num_images, _SAMPLE), np.zeros(num_images, _ALLOCATION)
    index = np.arange(num_images)
    page, slot = np.divmod(index, images_per_page)
    samples["mode"], samples["width"], samples["height"] = _RAW_MODE, IMAGE_SIZE, IMAGE_SIZE
    samples["pointer"] = pages_start + page * page_size + slot * _IMAGE_BYTES
    samples["label"] = labels
    table["sample"], table["pointer"], table["size"] = index, samples["pointer"], _IMAGE_BYTES
    return {"header": header, "fields": _FIELDS, "samples": samples, "allocation table": table}


def write_beton(path: Path, images: Images, labels: Labels, page_size: int = MIN_PAGE_SIZE) -> None:
    """Write images and labels as an FFCV file with the fields `image` (raw RGB) and `label` (int).

    The bytes depend on the arguments only. `path` is written in place: give a temporary name.

    Args:
        path: the file to write.
        images: `(N, 32, 32, 3)` uint8, N at least 1.
        labels: `(N,)` uint8 in 0..9.
        page_size: bytes per page, a power of two from `MIN_PAGE_SIZE` to `MAX_PAGE_SIZE`.

    Raises:
        FastcifarError: the file cannot be written.
    """
    assert images.dtype == labels.dtype == np.uint8
    assert images.shape == (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)
    assert len(labels) > 0
    *head, table = _build_metadata(labels, page_size).values()
    images_per_page = page_size // _IMAGE_BYTES
    with writing(path), path.open("wb") as file:
        file.write(b"".join(part.tobytes() for part in head))
        for start in range(0, len(images), images_per_page):
            file.write(bytes(-file.tell() % page_size))
            file.write(images[start : start + images_per_page].tobytes())
        file.write(bytes(-file.tell() % page_size))
        file.write(table.tobytes())


def remedy(data_dir: Path) -> str:
    """What to do about a damaged file in a data folder, for the end of an error message."""
    return f"write it again with `fastcifar prepare --force --out {shlex.quote(str(data_dir))}`"


def parse(content: NDArray[np.uint8], path: Path, num_images: int) -> tuple[Images, Labels]:
    """Check every entry of a .beton file of `write_beton`, and return its images and labels.

    Only the structure is checked. The digests in the manifest show whether pixels and labels are right.

    Args:
        content: the whole file, `(size,)` uint8.
        path: the file's path, for error messages.
        num_images: the number of images that it must hold.

    Returns:
        `(N, 32, 32, 3)` uint8 images, which may share memory with `content`, and `(N,)` uint8 labels.

    Raises:
        FastcifarError: an entry is wrong.
    """

    def require(condition: Any, what: str) -> None:
        if not condition:
            raise FastcifarError(f"{path} is damaged ({what}): {remedy(path.parent)}")

    samples_start = _HEADER.itemsize + _FIELDS.nbytes
    samples_end = samples_start + num_images * _SAMPLE.itemsize
    require(len(content) >= samples_end, "it ends too early")
    header = content[: _HEADER.itemsize].view(_HEADER)[0]
    require(header["version"] == _VERSION, "not an FFCV file of version 2")
    require(header["num_samples"] == num_images, f"it does not hold {num_images:,} images")
    page_size = int(header["page_size"])
    require(MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE and page_size.bit_count() == 1, "page size")
    labels = content[samples_start:samples_end].view(_SAMPLE)["label"]
    require(((labels >= 0) & (labels < NUM_CLASSES)).all(), "label")

    # Everything else follows from the labels and the page size.
    expected = _build_metadata(labels, page_size)
    pages_start, table_start = int(expected["samples"]["pointer"][0]), int(expected["header"]["table_start"][0])
    require(len(content) == table_start + expected["allocation table"].nbytes, "size of the file")
    starts = (0, _HEADER.itemsize, samples_start, table_start)
    for start, (part, values) in zip(starts, expected.items(), strict=True):
        found = content[start : start + values.nbytes].view(values.dtype)
        for name in values.dtype.names or ():
            require(np.array_equal(found[name], values[name]), f"{part}: {name}")

    used = page_size // _IMAGE_BYTES * _IMAGE_BYTES
    pages = content[pages_start:table_start].reshape(-1, page_size)[:, :used]
    return pages.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)[:num_images], labels.astype(np.uint8)
