"""C++ kernels, compiled for this machine on first use and kept in the user's cache.

A kernel knows nothing of Python or torch: it is called through ctypes with addresses, sizes and a pointer to the
`GOMP_parallel` of the OpenMP library that torch itself uses, so that a process has one pool of threads.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastcifar.errors import FastcifarError, one_line
from fastcifar.files import default_cache_dir, replacing
from fastcifar.machine import find_compiler

# -ffp-contract=fast: multiply and add in one instruction, with one rounding.
_FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
_PATIENCE_S = 60.0
_DIGEST_BYTES = hashlib.sha256().digest_size


class NativeError(Exception):
    """A kernel is not available here; the message is one line that says why."""


@functools.cache
def load_library(source: Path) -> ctypes.CDLL:
    """The library of a C++ source file, compiled unless the cache has it; several processes compile once.

    Raises:
        NativeError: there is no compiler, or it fails or takes longer than a minute.
    """
    if sys.platform != "linux":
        raise NativeError("compiled kernels are for Linux")
    compiler = find_compiler()
    if compiler is None:
        raise NativeError("there is no C++ compiler")
    # All macros that the compiler defines: its version, and each instruction set that -march=native resolves to.
    macros = _run([*compiler, *_FLAGS, "-dM", "-E", "-x", "c++", "/dev/null"])
    # The library does not depend on torch or OpenMP, which it gets at run time; torch's version is here for safety.
    parts = (source.read_bytes(), " ".join([*compiler, *_FLAGS]).encode(), macros, torch.__version__.encode())
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]
    name = f"{source.stem}-{key}.so"
    try:
        with _locked_cache() as folder:
            if not _is_whole(folder / name):
                with replacing(folder / name) as temporary:
                    _compile(compiler, source, temporary)
            return ctypes.CDLL(str(folder / name))
    except (OSError, FastcifarError):  # the cache cannot be written, or libraries in it cannot be loaded (noexec)
        with tempfile.TemporaryDirectory(prefix="fastcifar-") as private:  # a loaded library no longer needs its file
            _compile(compiler, source, Path(private) / name)
            try:
                return ctypes.CDLL(str(Path(private) / name))
            except OSError as error:
                raise NativeError(f"the compiled library cannot be loaded ({one_line(str(error))})") from error


@functools.cache
def find_openmp() -> ctypes.c_void_p:
    """The address of the `GOMP_parallel` that torch itself calls: in a preloaded library, otherwise in torch's.

    Raises:
        NativeError: torch was built with other threads than OpenMP's.
    """
    for library in (None, Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(None if library is None else str(library)).GOMP_parallel, ctypes.c_void_p)
    raise NativeError("torch's OpenMP library has no GOMP_parallel")


@contextlib.contextmanager
def _locked_cache() -> Iterator[Path]:
    """The folder for compiled libraries, while no other process compiles into it.

    Raises:
        OSError: it cannot be created or written, or other users may put libraries into it.
    """
    folder = default_cache_dir() / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone")
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):  # no locks, as on some network file systems: then each process compiles
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _compile(compiler: list[str], source: Path, target: Path) -> None:
    """Compile; the library's digest is appended to the file, where loaders ignore it."""
    _run([*compiler, *_FLAGS, str(source), "-o", str(target)])
    try:
        content = target.read_bytes()
        target.write_bytes(content + hashlib.sha256(content).digest())
    except OSError as error:
        raise NativeError(f"{compiler[0]} made no library") from error


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def _run(command: list[str]) -> bytes:
    """Run a compiler and return its standard output. After a minute, it and its child processes are killed."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=messages, start_new_session=True
            )
        except OSError as error:
            raise NativeError(f"{command[0]} cannot be run ({error.strerror})") from error
        try:
            status = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise NativeError(f"{command[0]} took more than {_PATIENCE_S:.0f} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for stream in (output, messages):
            stream.seek(0)
        if status:
            lines = messages.read().decode(errors="replace").splitlines()
            reason = next((line for line in lines if "error" in line), lines[0] if lines else f"exit status {status}")
            raise NativeError(f"{command[0]} failed ({one_line(reason)[:200]})")
        return output.read()
