"""Opening image files that nobody vouches for, and what their first and last bytes tell without decoding them."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require

__all__ = ["FORMATS", "MAX_PIXELS", "decode_image", "image_size", "known_formats", "open_image"]

# Pillow reads more, and by means not wanted here: EPS, for one, would start Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")

MAX_PIXELS = 178_956_970
"""Largest image read unless told otherwise: half a gigabyte as RGB, the size at which Pillow too refuses."""

END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
ORIENTATION = 0x0112
"""EXIF tag; from 5 on, the picture is stored lying on its side."""


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can decode."""
    image_module = require("PIL.Image")
    image_module.init()
    return tuple(name for name in FORMATS if name in image_module.OPEN)


@contextmanager
def open_image(path: str | Path) -> Iterator[Any]:
    """Open an image of one of `FORMATS` with Pillow, whatever its name says; pixels are read when asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pipe, a device or a folder, or has more than `MAX_PIXELS` by its header.
        Exception: Pillow's, of many kinds.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("is not a file")
    with require("PIL.Image").open(path, formats=known_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        yield image


def decode_image(path: str | Path, flags: int) -> np.ndarray:
    """Read an image with OpenCV, which does not look at the size before it makes room for the pixels.

    Args:
        path: the file.
        flags: as for ``cv2.imdecode``.

    Raises:
        DataError: the file is missing, is no image that OpenCV and Pillow both know, or has more than `MAX_PIXELS`.
    """
    cv2 = require("cv2")
    try:
        with open_image(path):
            pass
        image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.strerror else "is no image"
        raise DataError(f"{path}: {reason}") from error
    except Exception as error:  # Pillow and OpenCV raise many kinds, by the damage
        raise DataError(f"{path}: is no image that can be read ({' '.join(str(error).split())[:100]})") from error
    if image is None:
        raise DataError(f"{path}: is no image")
    return image


def image_size(path: Path) -> tuple[int, int, bool]:
    """Width and height as stored, and whether the EXIF data of a JPEG turns the picture by a quarter when it is read.

    Raises:
        DataError: the file is missing, does not open as an image, is too large, or is cut short.
    """
    try:
        with open_image(path) as image:  # reads the header only
            width, height, kind = image.width, image.height, image.format
            turned = kind == "JPEG" and image.getexif().get(ORIENTATION, 1) >= 5
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... by the damage
        raise DataError(f"{path}: does not open as an image ({' '.join(str(error).split())[:100]})") from error
    if kind in END_MARKS:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.rfind(END_MARKS[kind], max(0, len(content) - 65536)) < 0:
                raise DataError(f"{path}: is cut short")
    return width, height, turned
