"""FFCV's .beton file: written by FFCV, validated and read without it.

FFCV trusts every byte of a file: some damage makes it crash, some makes it return wrong pixels. So a file is used only
after `parse` has checked every entry. FFCV takes seconds to import, and only `write_beton` imports it.

The layout, little-endian: a header, one descriptor per field, one metadata record per sample, then (from the next
multiple of the page size) pages of pixel data, then the allocation table up to the end of the file.
"""

import contextlib
import shlex
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
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
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
_SAMPLE = np.dtype(
    {
        "names": ["mode", "width", "height", "pointer", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
_ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_FIELDS = ((2, b"image"), (1, b"label"))  # FFCV's type ids of RGBImageField and IntField


@contextlib.contextmanager
def ffcv_side_effects_undone() -> Iterator[None]:
    """Keep torch's thread count, which FFCV resets on import and whenever it creates or starts a loader.

    Warnings from its imports are silenced too.
    """
    import torch  # here, because it takes seconds and reading a file does not need it

    num_threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


class _OrdinaryMemory:
    """Takes the place of `SharedMemory`."""

    def __init__(self, create: bool, size: int) -> None:
        self.buf = bytearray(size)


class _OrdinaryCounter:
    """Takes the place of `multiprocessing.Value`."""

    def __init__(self, _: Any, value: int) -> None:
        self.value = value

    def get_lock(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


@contextlib.contextmanager
def _ordinary_memory() -> Iterator[None]:
    """Give FFCV's writer ordinary memory instead of shared memory.

    The writer shares metadata and counters with its worker processes through /dev/shm. If a container has too little of
    that, the process crashes with SIGBUS. `write_beton` has no worker processes.
    """
    from ffcv import memory_allocator, writer

    shared_memory, value = writer.shared_memory, memory_allocator.Value
    writer.shared_memory = SimpleNamespace(SharedMemory=_OrdinaryMemory)
    memory_allocator.Value = _OrdinaryCounter
    try:
        yield
    finally:
        writer.shared_memory, memory_allocator.Value = shared_memory, value


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
        ValueError: `page_size` is another number.
    """
    assert images.dtype == labels.dtype == np.uint8
    assert images.shape == (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)
    assert len(labels) > 0
    with ffcv_side_effects_undone():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.writer import DatasetWriter, handle_sample

    class InProcessWriter(DatasetWriter):  # type: ignore[misc]
        """FFCV's writer without its worker processes: it hangs if one of them fails, for example on a full disk."""

        def _write_common(self, num_samples: int, queue_content: Iterable[Any], _: Any, arguments: tuple[Any]) -> None:
            self.num_samples = num_samples
            self.prepare()
            metadata = np.frombuffer(self.metadata_sm.buf, self.metadata_type)
            allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
            with allocator:
                for chunk in queue_content:
                    for destination, source in chunk:
                        sample = arguments[0][source]
                        names = self.metadata_type.names
                        handle_sample(sample, destination, names, metadata, allocator, self.fields)
            self.finalize(allocator.allocations)

    class Samples:
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Images, int]:
            return images[index], int(labels[index])

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    with writing(path), _ordinary_memory():
        InProcessWriter(str(path), fields, page_size, num_workers=1).from_indexed_dataset(Samples())


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

    samples_start = _HEADER.itemsize + len(_FIELDS) * _FIELD.itemsize
    samples_end = samples_start + num_images * _SAMPLE.itemsize
    require(len(content) >= samples_end, "it ends too early")
    header = content[: _HEADER.itemsize].view(_HEADER)[0]
    require(header["version"] == _VERSION, "not an FFCV file of version 2")
    require(header["num_samples"] == num_images, f"it does not hold {num_images:,} images")
    page_size = int(header["page_size"])
    require(MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE and page_size.bit_count() == 1, "page size")
    require(header["num_fields"] == len(_FIELDS), "number of fields")
    for field, (type_id, name) in zip(content[_HEADER.itemsize : samples_start].view(_FIELD), _FIELDS, strict=True):
        known = field["type_id"] == type_id and field["name"] == name and not any(field["arguments"].tobytes())
        require(known, f"field {name.decode()}")

    pages_start = -(-samples_end // page_size) * page_size
    num_pages = -(-num_images // (page_size // _IMAGE_BYTES))  # an image never crosses a page
    table_start = pages_start + num_pages * page_size
    require(header["table_start"] == table_start, "position of the allocation table")
    require(len(content) == table_start + num_images * _ALLOCATION.itemsize, "size of the file")

    samples = content[samples_start:samples_end].view(_SAMPLE)
    require((samples["mode"] == _RAW_MODE).all(), "image mode")
    require((samples["width"] == IMAGE_SIZE).all() and (samples["height"] == IMAGE_SIZE).all(), "image size")
    require(((samples["label"] >= 0) & (samples["label"] < NUM_CLASSES)).all(), "label")
    # A single writer fills the pages in order, so every pointer has one correct value.
    index = np.arange(num_images, dtype=np.uint64)
    page, slot = np.divmod(index, np.uint64(page_size // _IMAGE_BYTES))
    pointers = np.uint64(pages_start) + page * np.uint64(page_size) + slot * np.uint64(_IMAGE_BYTES)
    require((samples["pointer"] == pointers).all(), "image pointer")
    table = content[table_start:].view(_ALLOCATION)
    sound = (table["sample"] == index) & (table["pointer"] == pointers) & (table["size"] == _IMAGE_BYTES)
    require(sound.all(), "allocation table")

    used = page_size // _IMAGE_BYTES * _IMAGE_BYTES
    pages = content[pages_start:table_start].reshape(num_pages, page_size)[:, :used]
    images = pages.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)[:num_images]
    return images, samples["label"].astype(np.uint8)
