"""Checkpoints: whole, atomic, and loaded without running anything they hold.

A checkpoint is what torch.save writes, and torch.load reads it. Its zip comment is the SHA-256 of all that precedes it:
torch itself takes flipped bits for weights.
"""

import hashlib
import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastcifar.errors import FastcifarError
from fastcifar.files import replacing

_FORMAT = 2
_DIGEST_CHARS = 64
# What tensors and plain values are pickled as. torch's own list is longer: its bytearray could take any memory.
_GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; `path` holds the former one or this one, whatever happens.

    Args:
        path: the file.
        content: tensors and plain values by name; `model` is the model's state dict.

    Raises:
        FastcifarError: the file system refuses.
    """
    buffer = io.BytesIO()  # torch's own writing to a file turns a full disk into an error that does not say so
    torch.save({"format": _FORMAT, **content}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(seal(buffer.getvalue()))


def seal(archive: bytes) -> bytes:
    """Give a zip file without a comment the one that `load_checkpoint` expects."""
    content = archive[:-2] + _DIGEST_CHARS.to_bytes(2, "little")  # it ends with its comment, and before that its length
    return content + hashlib.sha256(content).hexdigest().encode()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain values only.

    Raises:
        FastcifarError: it cannot be read, or is none of this package's.
    """
    try:
        file_content = path.read_bytes()
    except OSError as error:
        raise FastcifarError(f"cannot read {path}: {error.strerror}") from error
    try:
        _check(file_content)
        content = torch.load(io.BytesIO(file_content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever its parser meets
        raise FastcifarError(f"{path} is damaged, or not a fastcifar checkpoint of format {_FORMAT}") from error
    sound = isinstance(content, dict) and type(content.get("format")) is int and content["format"] == _FORMAT
    if not (sound and is_state(content.get("model"))):
        raise FastcifarError(f"{path} is damaged, or not a fastcifar checkpoint of format {_FORMAT}")
    return dict(content)


def is_state(model: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    return isinstance(model, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in model.items()
    )


def _check(file_content: bytes) -> None:
    """Raise ValueError, or whatever a parser does, unless these are bytes of ours that torch may read."""
    content, digest = file_content[:-_DIGEST_CHARS], file_content[-_DIGEST_CHARS:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("digest")
    with zipfile.ZipFile(io.BytesIO(file_content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")  # it could be a bomb
        (pickled,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        for operation, argument, _ in pickletools.genops(archive.read(pickled)):
            if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise ValueError(argument)
            if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise ValueError(operation.name)
