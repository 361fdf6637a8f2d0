"""Find the images and videos that a command was given, and read images so that nothing bad passes unseen.

What `read_image` makes of each kind of file, always BGR uint8, the layout the models are trained on:

- EXIF orientation is applied; grayscale, palette, YCbCr and CMYK become colour.
- Transparency is dropped, not blended, as training does when it reads the same file.
- 16-bit values are divided by 257, so that 65535 becomes 255, whatever the brightest pixel is. Floating-point
  files must hold values in 0..1.
- Of an animation or a document with pages, the first picture counts.
"""

import glob
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import MAX_PIXELS, known_formats

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "VIDEO_SUFFIXES", "Source", "find_inputs", "read_image", "to_bgr"]

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
))
VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
# fmt: on

ORIENTATION_TAG = 0x0112
_pillow_settings = threading.RLock()


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    is_video: bool = False


def find_inputs(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
    """Expand files, folders and globs into the files to work on, each once, in the order given.

    A file that is named is taken whatever it is called. Folders are searched to any depth in sorted order; in
    them and in globs only files with the suffix of an image or a video count, and hidden ones do not.

    Args:
        inputs: paths of files and folders, or globs (``**`` reaches to any depth).
        exclude: a folder whose contents do not count, such as one that results are written to.

    Raises:
        DataError: a path does not exist, a glob matches nothing, or a folder holds no images.
    """
    found: dict[str, Source] = {}
    excluded = None if exclude is None else Path(exclude).resolve()
    for item in inputs:
        for path in _expand(str(item), excluded):
            found.setdefault(os.path.realpath(path), Source(path, path.suffix.lower() in VIDEO_SUFFIXES))
    if not found:
        raise DataError("no input was given; name an image, a folder, a glob or a video")
    return list(found.values())


def _expand(item: str, excluded: Path | None) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        files = list(_walk(path, excluded))
        if not files:
            raise DataError(f"{item}: the folder holds no images or videos (looked for {_suffixes()})")
        return files
    if path.exists():
        return [path]
    if not glob.has_magic(item):
        raise DataError(f"{item}: there is no such file or folder")
    matches = sorted(Path(match) for match in glob.glob(item, recursive=True))
    if not matches:
        raise DataError(f"{item}: the glob matches nothing; check the pattern and the folder it starts from")
    files = []
    for match in matches:
        if match.is_dir():
            files.extend(_walk(match, excluded))
        elif _wanted(match) and not _inside(match, excluded):
            files.append(match)
    if not files:
        raise DataError(f"{item}: the glob matches no images or videos (looked for {_suffixes()})")
    return files


def _walk(folder: Path, excluded: Path | None) -> Iterator[Path]:
    seen: set[str] = set()  # links may lead in a circle
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen or _inside(Path(root), excluded):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if _wanted(Path(root, name)))


def _wanted(path: Path) -> bool:
    suffix = path.suffix.lower()
    return (suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES) and not path.name.startswith(".")


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(folder)


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES) + sorted(VIDEO_SUFFIXES))


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow's limits are global: lift that on size, which is ours to check, and refuse truncated files."""
    from PIL import Image, ImageFile

    with _pillow_settings:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about metadata, mostly; what is wrong with pixels raises
                yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as ``[H, W, 3]`` BGR uint8, turned upright.

    The size is taken from the header and checked before anything is decoded.

    Raises:
        DataError: the file is missing, empty, not an image, too large, damaged or truncated, or of a kind
            that has no plain meaning as colours.
    """
    image_module = require("PIL.Image")
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'there is no such file'}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)")
        with _strict_pillow(), image_module.open(path, formats=known_formats()) as image:
            check_size(str(path), image.width, image.height, max_pixels)
            image.load()
            return to_bgr(image)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except image_module.UnidentifiedImageError as error:
        kinds = ", ".join(known_formats())
        raise DataError(f"{path}: not an image, or its header is damaged; can read {kinds}") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except Exception as error:  # a decoder given damaged data may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or truncated ({reason}); get the file again or remove it") from error


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raise `DataError` for an image without pixels, or with more of them than allowed."""
    if width < 1 or height < 1:
        raise DataError(f"{name}: the image is {width}x{height} pixels")
    if width * height > max_pixels:
        raise DataError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, over the limit of "
            f"{max_pixels / 1e6:.0f}; raise it with --max-pixels (max_pixels=) if the file is to be trusted"
        )


def to_bgr(image) -> np.ndarray:
    """A PIL image as ``[H, W, 3]`` BGR uint8, turned upright, by the rules in the module's docstring.

    Raises:
        DataError: values outside what 8 or 16 bits hold, or a colour space Pillow cannot convert.
    """
    image.load()  # TIFF turns itself upright here and then forgets its orientation
    turn = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray = _to_8_bits(np.asarray(image))
        array = np.repeat(gray[..., None], 3, axis=2)
    else:
        if image.mode in ("P", "PA") and "transparency" in image.info:
            image = image.convert("RGBA")  # else Pillow warns
        try:
            array = np.asarray(image.convert("RGB"))[..., ::-1]
        except ValueError as error:
            raise DataError(f"images of mode {image.mode} are not supported; convert it to RGB") from error
    return np.ascontiguousarray(turn(array))


def _upright(image):
    """The function on arrays that turns this image as its EXIF data asks; damaged data asks for nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # the parser raises many things, none of which says that the pixels are bad
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


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (0 <= low <= high <= 1):  # NaN fails too
            raise DataError(f"floating-point pixels from {low:g} to {high:g}; scale them to 0..1")
        return np.rint(array * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise DataError(f"pixel values from {low} to {high} do not fit 16 bits; save it with 8 or 16 bits")
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def find_files(
    inputs: Sequence[str | Path], suffixes: Sequence[str], *, exclude: Path | None = None, what: str = "images"
) -> list[Path]:
    """Return the files with these suffixes in files and folders, each once."""
    found: dict[str, Path] = {}
    excluded = None if exclude is None else Path(exclude).resolve()
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"{item}: no such file or folder")
        files = [item]
        if item.is_dir():
            files = sorted(p for p in item.rglob("*") if p.suffix.lower() in suffixes and not _inside(p, excluded))
            if not files:
                raise DataError(f"{item}: the folder contains no {what} ({', '.join(suffixes)})")
        for path in files:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())
