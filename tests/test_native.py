"""Compiling C++ kernels: once, completely, for this machine; and what happens if that fails."""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastcifar.kernels import native, winograd
from fastcifar.kernels.native import NativeError, find_openmp
from fastcifar.machine import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
load = native.load_library.__wrapped__  # without its cache in this process


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastcifar" / "kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" long answer() { return 42; }')
    return path


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The calls of the compiler, one per line."""
    compiler = find_compiler()
    assert compiler is not None
    path = tmp_path / "log"
    path.touch()
    write_compiler(tmp_path, f'echo "$@" >> {path}; exec {" ".join(compiler)} "$@"', monkeypatch)
    return path


def write_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def num_compiled(log: Path) -> int:
    return sum(" -o " in line for line in log.read_text().splitlines())


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def test_compiles_once_for_many(source: Path, log: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert [library.answer() for library in pool.map(load, [source] * 8)] == [42] * 8
    assert num_compiled(log) == 1
    assert sorted(path.name for path in cache.iterdir()) == [libraries(cache)[0].name, "lock"]


def test_another_source_is_another_library(source: Path, log: Path, cache: Path) -> None:
    load(source)
    source.write_text('extern "C" long answer() { return 43; }')
    assert load(source).answer() == 43
    assert num_compiled(log) == len(libraries(cache)) == 2


def test_other_flags_are_another_library(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(source)
    compiler = find_compiler()
    assert compiler is not None
    monkeypatch.setenv("CXX", f"{compiler[0]} -DOTHER")
    load(source)
    assert len(libraries(cache)) == 2


@pytest.mark.parametrize("content", [b"", b"x", None])
def test_a_damaged_library_is_made_again(content: bytes | None, source: Path, log: Path, cache: Path) -> None:
    load(source)
    (library,) = libraries(cache)
    damaged = library.read_bytes()[:-100] if content is None else content
    library.unlink()  # it is in use
    library.write_bytes(damaged)
    assert load(source).answer() == 42
    assert num_compiled(log) == 2


def test_a_cache_that_cannot_be_written_is_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert load(source).answer() == 42
    assert sorted(tmp_path.iterdir()) == before


def test_a_cache_of_another_user_is_not_used(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert load(source).answer() == 42
    assert list(cache.iterdir()) == []


def test_a_cache_that_others_may_write_is_not_used(source: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert load(source).answer() == 42
    assert list(cache.iterdir()) == []


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NativeError, match=r"^there is no C\+\+ compiler$"):
        load(source)


def test_a_compiler_that_fails(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NativeError, match=r"false failed \(exit status 1\)$"):
        load(source)
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(NativeError, match=r"true made no library$"):
        load(source)
    monkeypatch.delenv("CXX")
    source.write_text("no C++")
    with pytest.raises(NativeError, match=r"failed \(.*error: .*\)$"):
        load(source)
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_a_compiler_that_hangs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_compiler(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait", monkeypatch)
    monkeypatch.setattr(native, "_PATIENCE_S", 5)
    with pytest.raises(NativeError, match=r"compiler took more than 5 s$"):
        load(source)
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(100):  # a killed process whose parent is gone stays until init looks
        try:
            if ") Z " in (child / "stat").read_text():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail("the compiler's own process lives on")


def test_without_a_compiler_torch_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    native.load_library.cache_clear()
    winograd._load.cache_clear()
    try:
        assert str(winograd.why_unavailable()).endswith("false failed (exit status 1)")
        x, weight = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
        assert torch.equal(winograd.conv3x3(x, weight, winograd.ALL_PASSES), torch.conv2d(x, weight, padding=1))
    finally:
        native.load_library.cache_clear()
        winograd._load.cache_clear()


def test_the_kernel_uses_torchs_pool_of_threads() -> None:
    assert find_openmp().value
    x, weight = torch.randn(4, 64, 32, 32), torch.randn(64, 64, 3, 3)
    torch.zeros(1 << 24).add_(1)  # torch starts all its threads
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    winograd.conv3x3(x, weight, winograd.ALL_PASSES)
    assert len(list(Path("/proc/self/task").iterdir())) == num_threads
