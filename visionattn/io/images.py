"""Read untrusted image files, and read their size without decoding them.

`read_image` returns BGR uint8, the layout that models are trained on. Checks, training, validation, inference and
drawing all read images with it:

- EXIF orientation is applied in every format; grayscale, palette, YCbCr and CMYK images are converted to color.
- Transparency is dropped, not blended.
- Values of more than 8 bits, gray or color, are scaled from their bit depth, the smallest of 8, 10, 12, 14 and 16 bits
  that holds the brightest pixel: cameras often store 12 bits in files of 16. A warning names the depth unless it is 16.
- Floating-point values in [0, 1] are scaled to [0, 255]; larger ones like integers, with a warning. If they
  end below 2, as after resampling, the largest value becomes 255.
- The first frame of an animation or the first page of a document is read, with a warning.
- HEIC is read if the package pillow-heif is installed.

The table in docs/images.md lists the formats.
"""

import importlib.util
import mmap
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, FormatError, LimitError, require

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "check_size",
    "decode_image",
    "image_size",
    "jpeg_round_trip",
    "known_formats",
    "open_image",
    "read_image",
    "to_bgr",
]

# Pillow supports more formats, but some are unsafe: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF")

MAX_PIXELS = 178_956_970
"""Default limit on the number of pixels: 512 MiB as RGB, the size above which Pillow also refuses to decode."""

END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
ORIENTATION = 0x0112
"""EXIF tag; values of 5 and above swap height and width."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of integer pixels."""
_told: set[str] = set()
"""Kinds of files that a warning has named, as it would otherwise be repeated for each file."""

_pillow_settings = threading.RLock()


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can decode."""
    image_module = require("PIL.Image")
    image_module.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        require("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in image_module.OPEN)


@contextmanager
def open_image(path: str | Path) -> Iterator[Any]:
    """Open an image of one of `FORMATS` with Pillow, regardless of its file name; pixels are decoded on access.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a pipe, a device or a folder, or the header declares more than `MAX_PIXELS`.
        Exception: raised by Pillow, of various types.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise ValueError("is not a file")
    with require("PIL.Image").open(path, formats=known_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
        yield image


def decode_image(path: str | Path, flags: int) -> np.ndarray:
    """Read an image with OpenCV, after checking its size, which OpenCV allocates without a check.

    Args:
        path: the file.
        flags: as for ``cv2.imdecode``.

    Raises:
        DataError: the file is missing, is not an image that both OpenCV and Pillow support, or has more than
            `MAX_PIXELS`.
    """
    cv2 = require("cv2")
    try:
        with open_image(path):
            pass
        image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.strerror else "is not an image"
        raise DataError(f"{path}: {reason}") from error
    except Exception as error:  # Pillow and OpenCV raise many types, depending on the damage
        raise DataError(f"{path}: cannot be read as an image ({' '.join(str(error).split())[:100]})") from error
    if image is None:
        raise DataError(f"{path}: is not an image")
    return image


def image_size(path: Path) -> tuple[int, int, bool]:
    """Width and height as stored, and whether the EXIF orientation swaps them.

    Raises:
        DataError: see `image_header`.
    """
    width, height, orientation = image_header(path)
    return width, height, orientation >= 5


def image_header(path: Path) -> tuple[int, int, int]:
    """Width and height as stored, and the EXIF orientation, 1 to 8.

    Raises:
        DataError: the file is missing, is not an image, is too large, or is truncated.
    """
    try:
        with open_image(path) as image:  # reads only the header
            width, height, kind = image.width, image.height, image.format
            orientation = _orientation(image, path)
            if kind == "TIFF" and orientation >= 5:  # Pillow gives the size with the orientation applied
                width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image does not exist") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
        raise DataError(f"{path}: cannot be opened as an image ({' '.join(str(error).split())[:100]})") from error
    if kind in END_MARKS:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.rfind(END_MARKS[kind], max(0, len(content) - 65536)) < 0:
                raise DataError(f"{path}: is truncated")
    return width, height, orientation


def _orientation(image: Any, path: Path) -> int:
    """Return the EXIF orientation of an opened image, 1 if it has none or its EXIF data is damaged."""
    if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.rfind(b"eXIf") < 0:
                return 1  # without decoding the pixels, after which Pillow looks for the chunk
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the parser raises many types; the pixels may still be valid
        return 1


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Disable Pillow's limit on the size, which is checked here, and its acceptance of truncated files.

    Both are global settings of Pillow and are restored at exit.
    """
    from PIL import Image, ImageFile

    with _pillow_settings:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # mostly about metadata; damaged pixels raise errors
                yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as ``[H, W, 3]`` BGR uint8, with its EXIF orientation applied.

    The size is read from the header and checked before anything is decoded.

    Args:
        path: the file.
        max_pixels: limit on height times width.

    Raises:
        DataError: the file is missing, empty, damaged or truncated, or its values cannot be converted to 8-bit colors.
        FormatError: the file is not an image of a supported format.
        LimitError: the image is too large.
    """
    image_module = require("PIL.Image")
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'the file does not exist'}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)")
        with _strict_pillow(), image_module.open(path, formats=known_formats()) as image:
            check_size(str(path), image.width, image.height, max_pixels)
            deep, pages = _is_deep(image), _pages(image)
            image.load()
        if pages > 1:  # outside of the block, which discards the warnings of Pillow
            _tell_once("pages", f"{path}: has {pages} pages or frames; of such files, only the first one is read")
        return to_bgr(image, str(path), _decode_deep(path, image.size) if deep else None)
    except DataError as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except image_module.UnidentifiedImageError as error:
        kinds = ", ".join(known_formats())
        raise FormatError(f"{path}: not an image, or its header is damaged; supported formats are {kinds}") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read the file") from error
    except Exception as error:  # a decoder may raise any type for damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or truncated ({reason}); replace the file or remove it") from error


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Check the size of an image; ``name`` starts the message.

    Raises:
        DataError: the image has no pixels.
        LimitError: it has more than ``max_pixels``.
    """
    if width < 1 or height < 1:
        raise DataError(f"{name}: the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise LimitError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, more than the limit `max_pixels` of "
            f"{max_pixels / 1e6:.0f} megapixels; increase it if you trust the file"
        )


def _tell_once(kind: str, line: str) -> None:
    if kind not in _told:
        _told.add(kind)
        warnings.warn(line, stacklevel=3)


def _pages(image: Any) -> int:
    """Return the number of pages of a document, or of frames of an animation."""
    if image.format in ("MPO", "HEIF"):  # previews and depth maps of one photograph
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged behind the first page
        return 1


def _is_deep(image: Any) -> bool:
    """Return True for a color image with more than 8 bits per value, of which Pillow keeps only the upper 8."""
    if image.mode not in ("RGB", "RGBA", "LA") or not image.tile:
        return False
    arguments = image.tile[0][3]
    if image.format == "PPM":  # the last argument is the largest value
        return isinstance(arguments, tuple) and arguments[-1] > 255
    mode = arguments[0] if isinstance(arguments, tuple) else arguments
    return image.format in ("PNG", "TIFF") and ";16" in str(mode)


def _decode_deep(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Decode a color image with 16 bits per value with OpenCV, without its transparency.

    Args:
        path: a PNG, TIFF or PPM file that Pillow has decoded completely.
        size: (width, height) in pixels as Pillow decoded it.

    Returns:
        BGR uint16 ``[H, W, 3]``, oriented as Pillow decodes it; None if OpenCV cannot decode the file.
    """
    cv2 = require("cv2")
    try:
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is None or array.dtype != np.uint16 or array.ndim != 3 or array.shape[1::-1] != size:
        return None
    return array[..., :3] if array.shape[2] >= 3 else np.repeat(array[..., :1], 3, axis=2)


def to_bgr(image: Any, name: str = "image", deep: np.ndarray | None = None) -> np.ndarray:
    """Convert a PIL image to ``[H, W, 3]`` BGR uint8 by the rules in the module's docstring.

    Args:
        image: the image.
        name: its name in warnings.
        deep: its values with 16 bits, BGR ``[H, W, 3]``, if Pillow has reduced them to 8.

    Raises:
        DataError: values that do not fit 8 or 16 bits, or a color space that Pillow cannot convert.
    """
    image.load()  # for TIFF, Pillow applies the orientation here and removes the tag
    turn = _upright(image)
    if deep is not None:
        array = _to_8_bits(deep, name)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray = _to_8_bits(np.asarray(image), name)
        array = np.repeat(gray[..., None], 3, axis=2)
    else:
        if image.mode in ("P", "PA") and "transparency" in image.info:
            image = image.convert("RGBA")  # avoids a warning from Pillow
        try:
            array = np.asarray(image.convert("RGB"))[..., ::-1]
        except ValueError as error:
            raise DataError(f"images of mode {image.mode} are not supported; convert the image to RGB") from error
    return np.ascontiguousarray(turn(array))


def _upright(image: Any):
    """The function on arrays that applies the EXIF orientation; the identity if the EXIF data is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the parser raises many types; the pixels may still be valid
        orientation = 1
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    return turns.get(orientation, lambda a: a)


def _to_8_bits(array: np.ndarray, name: str) -> np.ndarray:
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 65535):  # also catches NaN
        raise DataError(
            f"pixels must be in [0, 65535], or in [0, 1] for floating-point images, got values from {low:g} to "
            f"{high:g}; scale them to one of these ranges"
        )
    if array.dtype.kind == "f" and high <= 2:
        if high > 1:
            line = (
                f"{name}: its floating-point pixels are at most {high:g}; such files are scaled by their largest value"
            )
            _tell_once("floating point", line)
        return np.rint(array * (255 / max(float(high), 1.0))).astype(np.uint8)
    bits = next(depth for depth in DEPTHS if high < 2**depth)
    if array.dtype.kind == "f" or (0 < high < 2 ** DEPTHS[-2] and array.dtype.itemsize > 1):
        kind = "floating-point" if array.dtype.kind == "f" else "16-bit"
        line = f"{name}: its {kind} pixels are at most {high:g}; such files are read as {bits}-bit values"
        _tell_once(f"{kind} {bits}", line)
    largest = 2**bits - 1
    if array.dtype.kind == "f":
        return np.rint(array * (255 / largest)).clip(0, 255).astype(np.uint8)
    return ((array.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def jpeg_round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress an image as JPEG in memory and decode it again.

    Args:
        image: ``[H, W, 3]`` BGR uint8.
        quality: 1 to 100.
    """
    cv2 = require("cv2")
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)
