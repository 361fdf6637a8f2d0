"""What the first and last bytes of an image file tell, without decoding it."""

import mmap
from pathlib import Path

from visionattn.errors import DataError, require

__all__ = ["image_size"]

END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
ORIENTATION = 0x0112
"""EXIF tag; from 5 on, the picture is stored lying on its side."""


def image_size(path: Path) -> tuple[int, int, bool]:
    """Width and height as stored, and whether the EXIF data of a JPEG turns the picture by a quarter when it is read.

    Raises:
        DataError: the file is missing, does not open as an image, or is cut short.
    """
    image_module = require("PIL.Image")
    try:
        with image_module.open(path) as image:  # reads the header only
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
