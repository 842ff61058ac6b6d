"""Reads any picture file as an image for the model: 32x32 RGB."""

import contextlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from fastcifar.data.cifar10 import IMAGE_SIZE, Images
from fastcifar.errors import ArgumentError, FastcifarError

_MAX_PIXELS = 100_000_000  # 300 MB as RGB
_MAX_PIPED_BYTES = 1 << 30
# The formats of cameras, phones and browsers, by Pillow's names. For some others Pillow would start other programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# The folders of a shell's pipes; a pipe elsewhere may have no process at its other end.
_PIPE_NAMES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
_HIDDEN_FOLDERS = ("__MACOSX", "@eaDir")  # sidecar files of macOS and of Synology devices
_PNG_BIT_DEPTH_AT = 24  # in its header, which comes first
# TIFF 6.0's tags.
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 281, 339


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file as the model gets it.

    Attributes:
        path: the file's path.
        image: `(32, 32, 3)` uint8; None if it cannot be read.
        error: why it cannot be read, in one line.
        note: what was assumed about it, in one line.
    """

    path: Path
    image: Images | None
    error: str = ""
    note: str = ""


def find_pictures(paths: list[Path], *, recursive: bool = False) -> list[Path]:
    """List the given files, and for each folder the picture files in it, by name.

    Hidden files and the sidecar files of some systems are left out.

    Args:
        paths: the paths of files and folders.
        recursive: whether to search sub-folders too.

    Raises:
        FastcifarError: a folder has no picture files, or cannot be read.
    """
    found = []
    for path in paths:
        files = _pictures_in(path, recursive=recursive) if path.is_dir() else [path]
        if not files:
            if not recursive and _pictures_in(path, recursive=True):
                raise ArgumentError("recursive", f"is needed: only the sub-folders of {path} hold picture files")
            raise FastcifarError(f"{path} holds no picture files")
        found += files
    return found


def _pictures_in(folder: Path, *, recursive: bool) -> list[Path]:
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in _FORMATS}
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise FastcifarError(f"cannot read {error.filename or folder}: {error.strerror}") from error

    for top, folders, names in os.walk(folder, onerror=fail):
        shown = [name for name in folders if not name.startswith(".") and name not in _HIDDEN_FOLDERS]
        folders[:] = sorted(shown) if recursive else []
        files = [Path(top) / name for name in sorted(names) if not name.startswith(".")]
        found += [file for file in files if file.suffix.lower() in known and file.is_file()]
    return found


def read_pictures(paths: list[Path]) -> list[Picture]:
    """Read picture files, each once. If one cannot be read, its `error` says why; the others are still read."""
    pictures = []
    for path in paths:
        try:
            pictures.append(load_picture(path))
        except FastcifarError as error:
            pictures.append(Picture(path, None, error=str(error)))
    return pictures


def load_picture(path: Path) -> Picture:
    """Read a picture of any size and mode: turned upright, on white, its middle square scaled to 32x32.

    Of an animation the first frame is read. A picture that is already 32x32 RGB is not changed.

    Raises:
        FastcifarError: it cannot be read, is not a picture, is too large, or its values have no known range.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]  # AVIF, for example, may not be compiled in
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _open(path) as content,
            Image.open(content, formats=formats) as file,
        ):
            if file.width * file.height > _MAX_PIXELS:
                raise FastcifarError(f"{path} is too large: {file.width:,} x {file.height:,} pixels")
            file.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block does not spoil the pixels
                ImageOps.exif_transpose(file, in_place=True)
            if file.mode in ("I", "F") or file.mode.startswith("I;16"):
                return _scaled(path, file, content)
            bright = _brightened(path, file, content) if file.mode in ("RGB", "RGBA") else file
            return Picture(path, np.asarray(_as_rgb(bright)))
    except FastcifarError:
        raise
    except Image.DecompressionBombError as error:
        raise FastcifarError(f"{path} is too large: more than {_MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a damaged file makes its parser raise almost anything
        reason = getattr(error, "strerror", None) or "not a picture, or damaged"
        raise FastcifarError(f"cannot read {path}: {reason}") from error


def _open(path: Path) -> IO[bytes]:
    """Open a file as a seekable stream; a shell's pipe is first read to its end.

    Raises:
        FastcifarError: it is a named pipe, a device or a socket, which may never send anything.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return path.open("rb")
    if stat.S_ISDIR(mode):
        raise FastcifarError(f"cannot read {path}: it is a folder")
    if not (stat.S_ISFIFO(mode) and str(path).startswith(_PIPE_NAMES)):
        raise FastcifarError(f"cannot read {path}: it is not a regular file")
    with path.open("rb") as pipe:
        content = pipe.read(_MAX_PIPED_BYTES + 1)
    if len(content) > _MAX_PIPED_BYTES:
        raise FastcifarError(f"{path} is too large: more than {_MAX_PIPED_BYTES:,} bytes")
    return io.BytesIO(content)


def _scaled(path: Path, picture: Image.Image, content: IO[bytes]) -> Picture:
    """Scale a picture of more than 8 bits, or of floats, so that its range of values is black to white."""
    if picture.mode == "F":  # of unknown range; NaN becomes black
        values = np.nan_to_num(np.array(picture, np.float32), copy=False, nan=0, posinf=0, neginf=0)
        white, note = max(float(values.max()), 1e-9), ""
    else:
        integers = np.array(picture, np.int32)
        white, note = _white(path, picture, content, int(integers.min()), int(integers.max()))
        values = integers.astype(np.float32)
    shrunk = np.asarray(_shrink(Image.fromarray(values)))
    grey = Image.fromarray(np.clip(shrunk * (255 / white), 0, 255).round().astype(np.uint8))
    return Picture(path, np.asarray(grey.convert("RGB")), note=note)


def _white(path: Path, picture: Image.Image, content: IO[bytes], least: int, most: int) -> tuple[int, str]:
    """The value that means white, and if it is a guess, a line that says so.

    A range that the file states comes first, unless the file's values exceed it; then the full range of 16 bits. No
    camera has 32 bits, so the range of 32-bit values is the smallest usual range that contains them.
    """
    if least < 0:
        raise FastcifarError(f"{path} has negative values (down to {least:,}): scale it to 0..65,535")
    stated, num_bits = _stated_white(picture, content)
    if stated is not None and stated > 0 and most <= stated:
        return stated, ""
    if num_bits <= 16:  # Pillow scales what a PPM or a JPEG 2000 states to this range
        return 65535, ""
    white = next((top for top in (255, 4095, 65535) if most <= top), None)
    if white is None:
        raise FastcifarError(f"{path} has values up to {most:,}, of no known range: scale it to 0..65,535")
    return white, f"{path} does not say its range of values: 0..{white:,} is assumed (its greatest is {most:,})"


def _stated_white(picture: Image.Image, content: IO[bytes]) -> tuple[int | None, int]:
    """The value that a file states for white, if it does, and its bits for each number."""
    if isinstance(picture, TiffImageFile):
        num_bits = int(picture.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
        is_signed = 2 in picture.tag_v2.get(_SAMPLE_FORMAT, (1,))
        stated = picture.tag_v2.get(_MAX_SAMPLE_VALUE, (None,))[0]
        if stated is None and num_bits <= 16:
            stated = 2 ** (num_bits - is_signed) - 1
        return (None if stated is None else int(stated)), num_bits
    if picture.format == "PNG":
        content.seek(_PNG_BIT_DEPTH_AT)
        num_bits = content.read(1)[0]
        num_significant = _png_significant_bits(content)
        return (None if num_significant is None else 2**num_significant - 1), num_bits
    return None, 16


def _brightened(path: Path, picture: Image.Image, content: IO[bytes]) -> Image.Image:
    """A colour picture of 16 bits whose white is a smaller number, as a 12-bit camera writes it, with white as white.

    Pillow keeps the upper 8 of the 16 bits, so few levels are left.
    """
    stated, num_bits = _stated_white(picture, content)
    if stated is None or num_bits != 16 or (white := stated >> 8) == 255:
        return picture
    if white == 0:
        raise FastcifarError(f"{path} has 16-bit colours with values up to {stated:,} only: scale it to 0..65,535")
    most = max(top for _, top in picture.convert("RGB").getextrema())  # type: ignore[misc] # a pair for each colour
    if most > white:
        return picture
    bright = [round(min(value, white) * 255 / white) for value in range(256)]
    return picture.point(bright * 3 + (list(range(256)) if picture.mode == "RGBA" else []))


def _png_significant_bits(content: IO[bytes]) -> int | None:
    """The bits of the first channel by a PNG's sBIT chunk, which precedes the pixels."""
    content.seek(8)
    while len(head := content.read(8)) == 8 and head[4:] != b"IDAT":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"sBIT" and 1 <= length <= 4:
            return content.read(1)[0]
        content.seek(length + 4, io.SEEK_CUR)  # and the checksum
    return None


def _as_rgb(picture: Image.Image) -> Image.Image:
    """The middle square as 32x32 RGB, on white."""
    if picture.has_transparency_data:
        rgba = _shrink(picture.convert("RGBA"))  # Pillow weighs colours by their opacity here
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _shrink(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _shrink(picture: Image.Image) -> Image.Image:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
