"""Files that are whole or not there at all."""

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.errors import FastcifarError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name in the same folder; rename it once it is complete and synced.

    At any moment `path` holds its former content or all of the new one. Parent folders are made.

    Args:
        path: the file to make or replace.

    Yields:
        The temporary path to write to.

    Raises:
        FastcifarError: the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            temporary.replace(path)
            with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
                sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one line that names it."""
    try:
        yield
    except FileExistsError as error:
        raise FastcifarError(f"cannot write {path}: a file is in the way") from error
    except OSError as error:
        raise FastcifarError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Hold a lock on an existing folder; the lock ends with the process, even when that is killed.

    Raises:
        FastcifarError: with this message, another process or thread holds it.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FastcifarError(message) from error
        except OSError:
            pass  # some network file systems know no locks; better without one than not at all
        yield
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether it is a temporary file of `replacing` in a killed process."""
    return re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name) is not None


def default_cache_dir() -> Path:
    """Where this package keeps what it can make or download again; it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification has anything else ignored
        return Path(base) / "fastcifar"
    try:
        return Path.home() / ".cache" / "fastcifar"
    except RuntimeError:  # a user without a home, as containers may have
        return Path(tempfile.gettempdir()) / "fastcifar"


def sync(path: Path) -> None:
    """Ask the operating system to put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        FastcifarError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FastcifarError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FastcifarError(f"{path} is damaged: it is not UTF-8 text") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FastcifarError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FastcifarError(f"{path} is damaged: it is not valid JSON") from error
