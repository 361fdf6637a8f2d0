"""The size of tiles that suits a model: tiles should be resized by the same factor as the test images."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.inference.decoding import look_up
from visionattn.io.images import image_size
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files

__all__ = ["SHRUNK", "best_tile", "known_size", "resized_side", "suits_whole"]

DEFAULT_TILE = 1024
SHRUNK = 0.75
"""Tiles that are resized by less than this fraction of the factor for test images lose small objects."""
SAME_SCALE = 0.9
"""Images that are resized by at least this fraction of the factor for tiles need not be cut."""
LOOKED_AT = 20


def known_size(cfg: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the shorter and the longer side in pixels of the images that a model was trained or tested on.

    They are those in the metadata of its checkpoint, else the median of the first files in the folder of test images;
    None if there are neither.
    """
    recorded = meta.get("image_size")
    valid = isinstance(recorded, (list, tuple)) and len(recorded) == 2
    if valid and all(isinstance(side, int) and side > 0 for side in recorded):
        return min(recorded), max(recorded)
    sizes = list(itertools.islice(_test_sizes(cfg), LOOKED_AT))
    if not sizes:
        return None
    short, long = (int(side) for side in np.median(np.sort(sizes, axis=1), axis=0))
    return short, long


def best_tile(cfg: Mapping[str, Any], size: tuple[int, int] | None = None) -> int:
    """Return the side in pixels of tiles that the test pipeline resizes by the same factor as images of a size.

    If the pipeline does not resize, it is the longer side of these images.

    Args:
        cfg: the config of the model.
        size: see `known_size`; for None, the result is the size that the pipeline resizes to, or, for a pipeline that
            does not resize, the crop size of training, else 1024.
    """
    scale = _scale(cfg)
    if size is None:
        return max(32, (min(scale) if scale else None) or _crop(cfg) or DEFAULT_TILE)
    return max(32, round(min(scale) / _factor(scale, *size)) if scale else max(size))


def suits_whole(cfg: Mapping[str, Any], tile: int, height: int, width: int) -> bool:
    """Return True if the test pipeline resizes a whole image by about the same factor as square tiles, or by more."""
    scale = _scale(cfg)
    return scale is not None and _factor(scale, height, width) >= SAME_SCALE * min(scale) / tile


def resized_side(cfg: Mapping[str, Any]) -> int | None:
    """Return the side that the test pipeline resizes square images to; None if it does not resize to a fixed size."""
    scale = _scale(cfg)
    return None if scale is None else min(scale)


def _factor(scale: tuple[int, int], *size: int) -> float:
    """Return the factor by which an image of a size is resized to fit into a scale, with its aspect ratio."""
    return min(max(scale) / max(size), min(scale) / min(size))


def _dataset(cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    dataset = look_up(cfg, name, "dataset") or {}
    while isinstance(dataset, Mapping) and isinstance(dataset.get("dataset"), Mapping):
        dataset = dataset["dataset"]
    return dataset


def _steps(cfg: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    steps = _dataset(cfg, f"{name}_dataloader").get("pipeline") or look_up(cfg, f"{name}_pipeline") or []
    return [step for step in steps if isinstance(step, Mapping)]


def _scale(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    for step in _steps(cfg, "test") or _steps(cfg, "val"):
        if str(step.get("type")).rsplit(".", 1)[-1] == "Resize" and (scale := step.get("scale")):
            return (int(scale), int(scale)) if isinstance(scale, (int, float)) else (int(scale[0]), int(scale[1]))
    return None


def _crop(cfg: Mapping[str, Any]) -> int | None:
    for step in _steps(cfg, "train"):
        if size := step.get("crop_size"):
            return int(min(size)) if isinstance(size, (list, tuple)) else int(size)
    return None


def _test_sizes(cfg: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    dataset = _dataset(cfg, "test_dataloader") or _dataset(cfg, "val_dataloader")
    prefix = dataset.get("data_prefix") or {}
    folder = Path(str(dataset.get("data_root") or "")) / str(prefix.get("img") or prefix.get("img_path") or "")
    if folder == Path() or not folder.is_dir():
        return
    for path in walk_files(folder, IMAGE_SUFFIXES):
        try:
            yield image_size(path)[:2]
        except DataError:  # reported where the image is used
            continue
