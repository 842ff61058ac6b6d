"""Files that are complete or do not exist."""

import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.errors import FastcifarError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name beside it; rename it once it is complete and synced.

    At any moment `path` holds its former content or all of the new content. Parent folders are created.

    Args:
        path: the file to create or replace, or the folder to create.

    Yields:
        The temporary path to write to.

    Raises:
        FastcifarError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            remove_leftover(temporary)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's error in writing `path` into one line that names it."""
    try:
        yield
    except FileExistsError as error:
        raise FastcifarError(f"cannot write {path}: a file with this name exists") from error
    except OSError as error:
        raise FastcifarError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an operating system's error in reading `path` into one line that names it."""
    try:
        yield
    except OSError as error:
        raise FastcifarError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Hold a lock on an existing folder; the lock ends with the process, even if the process is killed.

    Raises:
        FastcifarError: another process or thread holds it; the text is `message`.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FastcifarError(message) from error
        except OSError:
            pass  # some network file systems have no locks; continue without one
        yield
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether it is a temporary file or folder that `replacing` left in a killed process."""
    return re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name) is not None


def remove_leftover(path: Path) -> None:
    """Remove a temporary file or folder, if it exists and can be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def default_cache_dir() -> Path:
    """The folder for files that can be made or downloaded again; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification says to ignore anything else
        return Path(base) / "fastcifar"
    try:
        return Path.home() / ".cache" / "fastcifar"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir()) / "fastcifar"


def sync(path: Path) -> None:
    """Ask the operating system to write a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Ask the operating system to write a folder's entries to the disk; some network file systems cannot."""
    with contextlib.suppress(OSError):
        sync(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 with the line ends that the text has."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; times in it are written as ISO 8601."""
    write_text(path, json.dumps(content, indent=2, default=datetime.datetime.isoformat) + "\n")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        FastcifarError: it cannot be read, or is not UTF-8.
    """
    try:
        with reading(path):
            return path.read_text(encoding="utf-8")
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
