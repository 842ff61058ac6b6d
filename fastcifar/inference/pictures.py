"""Any picture file as an image that the model takes: 32x32 RGB."""

import contextlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastcifar.data.cifar10 import IMAGE_SIZE, Images
from fastcifar.errors import FastcifarError

_MAX_PIXELS = 100_000_000  # 300 MB as RGB
# What cameras, phones and browsers make, as Pillow calls it. Of the rest some would start other programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


def find_pictures(paths: list[Path]) -> list[Path]:
    """The files named, and in the place of a folder the picture files directly in it, by name.

    Raises:
        FastcifarError: a folder holds none, or cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        known = {extension for extension, kind in Image.registered_extensions().items() if kind in _FORMATS}
        try:
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in known and file.is_file())
        except OSError as error:
            raise FastcifarError(f"cannot read {path}: {error.strerror}") from error
        if not files:
            raise FastcifarError(f"{path} holds no picture files")
        found += files
    return found


def load_picture(path: Path) -> Images:
    """Read a picture of any size and mode: turned upright, on white, its middle square scaled to 32x32.

    The first frame of one that moves. One that is 32x32 RGB already is taken as it is.

    Returns:
        `(32, 32, 3)` uint8.

    Raises:
        FastcifarError: it cannot be read, is no picture, or is too large.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]  # AVIF, say, need not be compiled in
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise FastcifarError(f"{path} is too large: {file.width:,} x {file.height:,} pixels")
            file.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block does not spoil the pixels
                ImageOps.exif_transpose(file, in_place=True)
            return np.asarray(_as_rgb(file))
    except FastcifarError:
        raise
    except Image.DecompressionBombError as error:
        raise FastcifarError(f"{path} is too large: more than {_MAX_PIXELS:,} pixels") from error
    except OSError as error:
        reason = error.strerror or "not a picture, or damaged"
        raise FastcifarError(f"cannot read {path}: {reason}") from error
    except Exception as error:  # a damaged file makes its parser raise almost anything
        raise FastcifarError(f"cannot read {path}: not a picture, or damaged") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    """The middle square in 32x32 RGB, on white."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        # 16 bits a pixel, or of unknown range; what is no number is black.
        values = np.nan_to_num(np.array(picture, np.float32), copy=False, nan=0, posinf=0, neginf=0)
        top = max(float(values.max()), 65535.0 if picture.mode != "F" else 1e-9)
        shrunk = np.asarray(_shrink(Image.fromarray(values)))
        return Image.fromarray(np.clip(shrunk * (255 / top), 0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = _shrink(picture.convert("RGBA"))  # Pillow weighs colours by their opacity here
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _shrink(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _shrink(picture: Image.Image) -> Image.Image:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
