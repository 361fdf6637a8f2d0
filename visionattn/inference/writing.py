"""Result files: unique names, images of per-pixel results, and JSON lists that are written record by record."""

import contextlib
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.inputs import Source

__all__ = [
    "MAP_FOLDERS",
    "JsonRecords",
    "encode_png",
    "map_pixels",
    "output_names",
    "remove_unfinished",
    "temporary_name",
    "to_json",
    "write_maps",
    "write_png",
]

MAP_FOLDERS = {"map": "maps", "heatmap": "heatmaps", "mask": "masks", "panoptic": "panoptic"}
"""Folder of each kind of per-pixel result, the same for all jobs.

- ``map``: the class index of each pixel, 8 bits, or 16 where there are more than 256 classes.
- ``heatmap``: values in [0, 1] as 16-bit gray; 65535 is 1.
- ``mask``: 255 inside the mask, 0 outside.
- ``panoptic``: segment ids as colors, in the format of COCO panoptic.
"""


def output_names(sources: Sequence[Source]) -> list[str]:
    """Return a file name without suffix for the results of each source; all differ, also if case is ignored.

    The name is the stem of the source. If several sources have the same stem, their names get the suffix (``x_jpg``,
    ``x_png``), if needed parent folders (``a_x``, ``b_x``), and otherwise a number.
    """
    choices = [_choices(Path(os.path.realpath(source.path))) for source in sources]
    level = [0] * len(choices)
    while True:
        names = [choice[at] for choice, at in zip(choices, level, strict=True)]
        counts = Counter(name.casefold() for name in names)
        stuck = True
        for index, name in enumerate(names):
            if counts[name.casefold()] > 1 and level[index] + 1 < len(choices[index]):
                level[index] += 1
                stuck = False
        if stuck:
            break
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index].casefold() in taken:
            names[index] = f"{name}_{number}"
            number += 1
        taken.add(names[index].casefold())
    return names


def _choices(path: Path) -> list[str]:
    folders = path.parts[1:-1]
    names = []
    for depth in range(len(folders) + 1):
        prefix = folders[len(folders) - depth :]
        names.append("_".join([*prefix, path.stem]))
        if path.suffix:
            names.append("_".join([*prefix, f"{path.stem}_{path.suffix[1:]}"]))
    return names


def temporary_name(path: Path) -> Path:
    """Return the hidden name that a result file has until it is complete."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def remove_unfinished(folder: Path, start: str = "") -> None:
    """Remove the files of killed processes from a folder of results: those with a `temporary_name`.

    Args:
        folder: the folder.
        start: start of the names of the results; others may belong to processes on other machines.
    """
    for path in folder.rglob(f".{glob.escape(start)}*.tmp.*"):
        found = re.search(r"\.(\d{1,9})\.tmp\.\w+$", path.name)
        if found and not _is_running(int(found[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(process: int) -> bool:
    if process == os.getpid() or os.name != "posix":  # on Windows, os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True


def encode_png(image: np.ndarray, name: str = "image") -> bytes:
    """Return a BGR or gray image with 8 or 16 bits per channel as PNG; ``name`` starts the message of the error.

    Raises:
        DataError: the image has another type or shape.
    """
    cv2 = require("cv2")
    done, data = cv2.imencode(".png", image)
    if not done:
        raise DataError(f"{name}: an image of shape {list(image.shape)} cannot be written as PNG")
    return data.tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a BGR or gray image with 8 or 16 bits per channel as PNG. The file appears when it is complete.

    Missing folders are created.

    Raises:
        DataError: the file cannot be written.
    """
    data = encode_png(image, str(path))
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def write_maps(out: Path, name: str, maps: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write per-pixel results as ``<folder>/<name>.png``.

    Args:
        out: output folder.
        name: file name without suffix.
        maps: by kind, see `MAP_FOLDERS`: class indices or values ``[H, W]``, or for ``panoptic`` BGR uint8.

    Returns:
        The paths within `out`, by kind.

    Raises:
        DataError: a file cannot be written.
    """
    written = {}
    for kind, values in maps.items():
        folder = MAP_FOLDERS[kind]
        write_png(out / folder / f"{name}.png", map_pixels(kind, values))
        written[kind] = f"{folder}/{name}.png"
    return written


def map_pixels(kind: str, values: np.ndarray) -> np.ndarray:
    """Return a per-pixel result as the pixels of a PNG file, see `MAP_FOLDERS`."""
    if kind == "map":
        return values.astype(np.uint8 if values.max() <= 255 else np.uint16)
    if kind == "heatmap":
        return np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)
    if kind == "mask":
        return values.astype(bool).astype(np.uint8) * 255
    return values


class JsonRecords:
    """Context manager that writes a JSON object with a list, one record at a time.

    The file is created under a temporary name and renamed when the ``with`` block ends. If the block raises, the
    records so far, if any, are saved as ``<name>.partial.json`` with ``"complete": false``; an existing file is kept.
    The next complete file replaces both.

    Args:
        path: the file, ending in .json.
        head: entries of the object before the list.
        key: key of the list.
    """

    def __init__(self, path: Path, head: dict[str, Any], key: str):
        self.path, self._temporary = path, temporary_name(path)
        self._partial = path.with_suffix(".partial.json")
        self._head, self._key, self._count = head, key, 0

    def __enter__(self) -> "JsonRecords":
        try:
            self._file = self._temporary.open("w", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error
        lines = [f"{to_json(key)}: {to_json(value)}," for key, value in self._head.items()]
        self._file.write("\n".join(["{", *lines, f"{to_json(self._key)}: ["]))
        return self

    def add(self, record: dict[str, Any]) -> None:
        """Append one record of JSON values."""
        self._file.write(("," if self._count else "") + "\n" + to_json(record))
        self._count += 1

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            self._file.write(f'\n],\n"complete": {to_json(kind is None)}\n}}\n')
            self._file.flush()
            os.fsync(self._file.fileno())
        if kind is not None and not self._count:
            self._temporary.unlink()
            return
        os.replace(self._temporary, self.path if kind is None else self._partial)
        if kind is None:
            self._partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """Return JSON; NaN and infinity raise `ValueError`, since they are not valid JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
