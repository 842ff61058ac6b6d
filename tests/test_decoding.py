import gzip
import os
import pickle
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import containers
from support.containers import NUM_BATCH, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, Files

from fastcifar.data import cifar10, decoding
from fastcifar.data.decoding import ContainerName
from fastcifar.errors import FastcifarError

REAL = cifar10.SPEC
GOLDEN_VAL = [4, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 24, 25, 32, 33, 36, 38, 39]
QUICK = settings(deadline=None, max_examples=100, database=None)


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with containers.tiny_cifar10():
        yield


def decode(container: ContainerName, files: Files) -> None:
    """Decode, and demand the tiny dataset."""
    train_images, train_labels, test_images, test_labels = decoding.decode_container(container, files)
    assert {array.dtype for array in (train_images, train_labels, test_images, test_labels)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(train_images, TRAIN_IMAGES)
    np.testing.assert_array_equal(train_labels, TRAIN_LABELS)
    np.testing.assert_array_equal(test_images, TEST_IMAGES)
    np.testing.assert_array_equal(test_labels, TEST_LABELS)


def message(container: ContainerName, files: Files) -> str:
    """What decoding complains of, which must be one line."""
    with pytest.raises(FastcifarError) as caught:
        decoding.decode_container(container, files)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400
    return text


def pickle_message(raw: bytes) -> str:
    return message("python version", containers.python_files() | {"data_batch_3": raw})


# Decoding what is good.


@pytest.mark.parametrize("container", containers.FORMS)
def test_decode(container: ContainerName) -> None:
    files = containers.FORMS[container][0]()
    assert set(files) == set(decoding.CONTAINER_FILES[container])
    assert all(len(content) <= decoding.max_file_bytes(name) for name, content in files.items())
    decode(container, files)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_decode_batches_that_python_3_wrote(protocol: int) -> None:
    decode("python version", containers.repickled_files(protocol))


def test_decode_batches_with_byte_keys() -> None:
    files = {
        name: pickle.dumps({b"data": containers.planes(images), b"labels": labels.tolist()}, 3)
        for name, images, labels in containers.batches()
    }
    decode("python version", files)


def test_decode_batches_in_fortran_order() -> None:
    files = {
        name: pickle.dumps({"data": np.asfortranarray(containers.planes(images)), "labels": labels.tolist()}, 3)
        for name, images, labels in containers.batches()
    }
    decode("python version", files)


def test_real_files_fit_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SPEC", REAL)
    sizes = {
        "data_batch_1": 31_035_704,
        "test_batch.bin": 30_730_000,
        "data_batch_3.png": 23_174_917,
        "train_lables.json": 100_001,
        "test_lables.json": 20_001,
    }
    for name, size in sizes.items():
        assert size < decoding.max_file_bytes(name) < 62_000_000


def test_pillow_keeps_its_limit() -> None:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    decode("PNG mosaics", containers.mosaic_files())
    assert limit == Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert limit > 1024 * 10_000  # a real mosaic needs no raised one


# Pickles that are not batches.


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (getattr, "builtins.getattr"),
        (np.load, "numpy.load"),
        (np.frombuffer, "numpy.frombuffer"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_calls_is_refused_before_it_does(function: Any, name: str, protocol: int) -> None:
    text = pickle_message(pickle.dumps({"data": Call(function, "raise SystemExit"), "labels": []}, protocol))
    if protocol != 4:
        name = name.replace("builtins", "__builtin__")
    assert text == f"data_batch_3 is not a CIFAR-10 batch: it asks for '{name}', which no batch needs: do not trust it"


def test_pickle_protocol_5_arrays_are_refused_by_name() -> None:
    assert "it asks for 'numpy._core.numeric._frombuffer'" in pickle_message(
        pickle.dumps({"data": containers.planes(TRAIN_IMAGES[:8]), "labels": []}, 5)
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # numpy.ndarray(2**31 - 1)
        b"\x80\x02cnumpy\nndarray\n(M\xff\xffM\xff\xffM\xff\xfftR.",  # a shape of 2**48
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",  # an object dtype
        b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00abcX\x03\x00\x00\x00zip\x86R.",  # any other codec
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(K\x01K\x02tR}b.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x08\x00\x00\x00__code__K\x00sb.",  # set attributes
        b"\x80\x02cnumpy\nndarray\nN}X\x03\x00\x00\x00fooK\x00s\x86b.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"(inumpy\nndarray\n.",
        b"(cnumpy\nndarray\no.",
        b"\x80\x02Pid\n.",
        b"\x80\x02K\x00Q.",  # persistent ids
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x05K\x00\x98.",  # extension registry, out-of-band buffers
    ],
)
def test_allowed_names_cannot_be_abused(raw: bytes) -> None:
    tracemalloc.start()
    text = pickle_message(raw)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert text.startswith(("data_batch_3 is not a CIFAR-10 batch: ", "data_batch_3 is not a readable pickle ("))
    assert not hasattr(np.ndarray, "foo")


def _tuples_of_tuples(depth: int) -> bytes:
    """A dict whose key hashes in 2**depth steps."""
    return b"\x80\x02})" + b"2\x86" * depth + b"K\x01s."


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"\x80\x02]r\xff\xff\xff\x7f.", "LONG_BINPUT has an argument too large for a batch"),  # a memo of 32 GB
        (b"\x80\x02]p99999999999\n.", "PUT has an argument too large for a batch"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "LONG1 has an argument too large for a batch"),
        (b"\x80\x02" + b"]" * 100_000 + b".", "it has far more opcodes than a batch of 8 images needs"),
        (b"\x80\x02)" + b"\x85" * 100_000 + b"}K\x01s.", "it has far more opcodes than a batch of 8 images needs"),
        (b"\x80\x02" + b"K\x01" * 100_000 + b".", "it has far more opcodes than a batch of 8 images needs"),
        (_tuples_of_tuples(60), "it has far more opcodes than a batch of 8 images needs"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.", "expected 1099511627776 bytes in a bytes8, but only 2"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"a.", "bytes in a bytearray8, but only 2 remain"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.", "pickle data was truncated"),
        (b"I" + b"9" * 60_000 + b"\n.", "Exceeds the limit"),
    ],
)
def test_pickle_bombs_end_at_once(raw: bytes, complaint: str) -> None:
    tracemalloc.start()
    began = time.monotonic()
    text = pickle_message(raw)
    assert time.monotonic() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert complaint in text


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ([1, 2], "data_batch_3 is not a CIFAR-10 batch: it holds a list, expected a dict"),
        ({}, 'data_batch_3 is not a CIFAR-10 batch: its "data" is not a (8, 3072) uint8 array'),
        ({"data": b"x"}, 'its "data" is not a (8, 3072) uint8 array'),
        ({"data": np.zeros((7, 3072), np.uint8)}, 'its "data" is not a (8, 3072) uint8 array'),
        ({"data": np.zeros((8, 3072), np.int8)}, 'its "data" is not a (8, 3072) uint8 array'),
        ({"data": np.zeros((8, 3072), np.float32)}, 'its "data" is not a (8, 3072) uint8 array'),
        ({"data": np.zeros((8, 3072), np.uint8)}, "data_batch_3 has no list of labels"),
        ({"data": np.zeros((8, 3072), np.uint8), "labels": (0,) * 8}, "data_batch_3 has no list of labels"),
        ({"data": np.zeros((8, 3072), np.uint8), "labels": [0] * 7}, "data_batch_3 has 7 labels, expected 8"),
        (
            {"data": np.zeros((8, 3072), np.uint8), "labels": [0] * 7 + [10]},
            "data_batch_3 has a label at position 7 that is not a whole number 0..9",
        ),
        (
            {"data": np.zeros((8, 3072), np.uint8), "labels": [0, True] * 4},
            "data_batch_3 has a label at position 1 that is not a whole number 0..9",
        ),
    ],
)
def test_pickle_of_something_else(batch: Any, complaint: str) -> None:
    assert complaint in pickle_message(pickle.dumps(batch, 2))


def test_pickled_array_with_too_few_bytes() -> None:
    raw = containers.official_pickle(TRAIN_IMAGES[:8], TRAIN_LABELS[:8])
    short = raw.replace(struct.pack("<I", 24576), struct.pack("<I", 24570))
    assert len(short) == len(raw)
    content_at = short.index(struct.pack("<I", 24570)) + 4
    text = pickle_message(short[: content_at + 24570] + short[content_at + 24576 :])
    assert text == (
        'data_batch_3 is not a CIFAR-10 batch: its "data" has 24,570 bytes, expected a (8, 3072) uint8 array'
    )


# Other files that are not what they should be.


def test_binary_batch_of_the_wrong_size() -> None:
    files = containers.binary_files()
    files["test_batch.bin"] += b"x"
    assert message("binary version", files) == (
        "test_batch.bin has 61,461 bytes, expected 61,460: 20 records of 3,073 bytes"
    )


def test_binary_batch_with_a_label_out_of_range() -> None:
    files = containers.binary_files()
    files["data_batch_2.bin"] = b"\x0a" + files["data_batch_2.bin"][1:]
    assert message("binary version", files) == "data_batch_2.bin has a label above 9, 10"


def _png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(body)


def _chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


_IDAT = _chunk(b"IDAT" + zlib.compress(bytes(NUM_BATCH * (1 + 3 * 1024))))
_IEND = _chunk(b"IEND")


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "data_batch_5.png is not a PNG picture"),
        (b"GIF89a" + bytes(99), "data_batch_5.png is not a PNG picture"),
        (_png_header(1024, 8)[:25], "data_batch_5.png is not a PNG picture"),
        (
            _png_header(50_000, 50_000) + _IDAT + _IEND,
            "data_batch_5.png is 50,000 x 50,000 pixels of 8 bits and PNG colour type 2, "
            "expected 1,024 x 8 of 8 bits and type 2 (RGB)",
        ),
        (_png_header(1024, 9) + _IDAT, "data_batch_5.png is 1,024 x 9 pixels"),
        (_png_header(1024, 8, 16) + _IDAT, "data_batch_5.png is 1,024 x 8 pixels of 16 bits and PNG colour type 2"),
        (_png_header(1024, 8, 8, 6) + _IDAT, "data_batch_5.png is 1,024 x 8 pixels of 8 bits and PNG colour type 6"),
        (_png_header(1024, 8) + _png_header(50_000, 50_000)[8:] + _IDAT + _IEND, "data_batch_5.png is a corrupt PNG"),
        (
            _png_header(1024, 8) + _png_header(1024, 9)[8:] + _IDAT + _IEND,
            "data_batch_5.png contradicts its own header: (1024, 9), RGB",
        ),
        (_png_header(1024, 8) + _chunk(b"teXt") * 10_000, "data_batch_5.png has more than 10,000 chunks, far too many"),
        (_png_header(1024, 8) + _IEND, "data_batch_5.png is a corrupt PNG picture ("),
        (_png_header(1024, 8) + _IDAT[:-20], "data_batch_5.png is a corrupt PNG picture ("),
        (
            _png_header(1024, 8) + _IDAT[:20] + b"xxxx" + _IDAT[24:] + _IEND,
            "data_batch_5.png is a corrupt PNG picture (",
        ),
    ],
)
def test_mosaic_that_is_none(raw: bytes, complaint: str) -> None:
    tracemalloc.start()
    text = message("PNG mosaics", containers.mosaic_files() | {"data_batch_5.png": raw})
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert text.startswith(complaint)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"[3, 1", "test_lables.json is not JSON ("),
        (b"\xff\xfe\xfd", "test_lables.json is not JSON ("),
        (b"[" * 60_000, "test_lables.json is not JSON ("),
        (b"[" + b"9" * 50_000 + b"]", "test_lables.json is not JSON (Exceeds the limit"),
        (b'{"labels": []}', "test_lables.json has no list of labels"),
        (b"3", "test_lables.json has no list of labels"),
        (b"[1, 2]", "test_lables.json has 2 labels, expected 20"),
        (b"[" + b"0," * 19 + b"10]", "test_lables.json has a label at position 19 that is not a whole number 0..9"),
        (b"[-1" + b",0" * 19 + b"]", "test_lables.json has a label at position 0 that is not a whole number 0..9"),
        (b"[1.0" + b",0" * 19 + b"]", "test_lables.json has a label at position 0 that is not a whole number 0..9"),
        (b"[[0]" + b",0" * 19 + b"]", "test_lables.json has a label at position 0 that is not a whole number 0..9"),
        (b"[true" + b",0" * 19 + b"]", "test_lables.json has a label at position 0 that is not a whole number 0..9"),
        (b"[NaN" + b",0" * 19 + b"]", "test_lables.json has a label at position 0 that is not a whole number 0..9"),
    ],
)
def test_labels_that_are_none(raw: bytes, complaint: str) -> None:
    assert message("PNG mosaics", containers.mosaic_files() | {"test_lables.json": raw}).startswith(complaint)


# Anything at all: the dataset's shapes, or a FastcifarError.


@QUICK
@given(raw=st.binary(max_size=300), data=st.data())
def test_random_bytes_only_ever_give_the_one_error(raw: bytes, data: st.DataObject) -> None:
    container: ContainerName = data.draw(st.sampled_from(list(decoding.CONTAINER_FILES)))
    name = data.draw(st.sampled_from(decoding.CONTAINER_FILES[container]))
    message(container, containers.FORMS[container][0]() | {name: raw})


@QUICK
@given(
    st.lists(
        st.sampled_from(
            [
                b"}",
                b"]",
                b"(",
                b")",
                b"2",
                b"0",
                b"1",
                b"e",
                b"u",
                b"s",
                b"b",
                b"R",
                b"t",
                b"\x85",
                b"\x86",
                b"\x81",
                b"\x94",
                b"K\x01",
                b"q\x00",
                b"h\x00",
                b"cnumpy\nndarray\n",
                b"cnumpy\ndtype\n",
                b"c_codecs\nencode\n",
                b"U\x04data",
                b"cnumpy.core.multiarray\n_reconstruct\n",
                b"N",
                b"o",
                b"a",
                b"d",
                b"l",
                b"X\x02\x00\x00\x00u1",
                b"\x90",
                b"\x91",
            ]
        ),
        max_size=40,
    )
)
def test_random_pickle_programs_only_ever_give_the_one_error(opcodes: list[bytes]) -> None:
    pickle_message(b"\x80\x02" + b"".join(opcodes) + b".")


@QUICK
@given(data=st.data())
def test_random_damage_only_ever_gives_the_one_error(data: st.DataObject) -> None:
    container: ContainerName = data.draw(st.sampled_from(list(decoding.CONTAINER_FILES)))
    name = data.draw(st.sampled_from(decoding.CONTAINER_FILES[container]))
    files = containers.FORMS[container][0]()
    files[name] = containers.damaged(files[name], data)
    try:
        train_images, train_labels, test_images, test_labels = decoding.decode_container(container, files)
    except FastcifarError:
        assert message(container, files).startswith(name)
    else:  # the damage is in pixels, in a label, or where nobody looks
        assert train_images.shape == (40, 32, 32, 3)
        assert test_images.shape == (20, 32, 32, 3)
        assert max(train_labels.max(), test_labels.max()) < 10


def test_gzip_helper_makes_what_it_says() -> None:
    """The bomb of test_sources is a true one."""
    unpacked = zlib.decompressobj(wbits=31).decompress(containers.gzip_of_zeros(3, b"head"))
    assert unpacked == b"head" + bytes(3 << 20)
    assert gzip.decompress(containers.tar_gz({}, "package"))[:8] == b"package/"
