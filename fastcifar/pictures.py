"""Any picture file as an image that the model takes: 32x32 RGB."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastcifar.cifar10 import IMAGE_SIZE, Images
from fastcifar.errors import FastcifarError

_MAX_PIXELS = 100_000_000  # 300 MB as RGB


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
        extensions = Image.registered_extensions().items()
        known = {extension for extension, kind in extensions if kind in Image.OPEN or kind == "MPO"}  # opened as JPEG
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
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise FastcifarError(f"{path} is too large: {file.width:,} x {file.height:,} pixels")
            picture = ImageOps.exif_transpose(file)
            picture = _as_rgb(picture)
    except FastcifarError:
        raise
    except Image.DecompressionBombError as error:
        raise FastcifarError(f"{path} is too large: more than {_MAX_PIXELS:,} pixels") from error
    except OSError as error:
        reason = error.strerror or "not a picture, or damaged"
        raise FastcifarError(f"cannot read {path}: {reason}") from error
    except Exception as error:  # a damaged file raises whatever its parser meets
        raise FastcifarError(f"cannot read {path}: not a picture, or damaged") from error
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        picture = ImageOps.fit(picture, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, np.float64)  # 16 bits a pixel, or of unknown range
        top = 65535.0 if picture.mode != "F" else max(float(values.max()), 1e-9)
        return Image.fromarray(np.clip(values * (255 / top), 0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")
