"""Checkpoints: whole, atomic, and loaded without running anything they hold."""

import io
from pathlib import Path
from typing import Any

import torch

from fastcifar.errors import FastcifarError
from fastcifar.files import replacing

_FORMAT = 1


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
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain values only.

    Raises:
        FastcifarError: it cannot be read, or is none of this package's.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FastcifarError(f"cannot read {path}: {error.strerror}") from error
    with file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises whatever its parser meets
            raise FastcifarError(f"{path} is not a checkpoint, or is damaged") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("model"), dict):
        raise FastcifarError(f"{path} is not a fastcifar checkpoint of format {_FORMAT}")
    return content
