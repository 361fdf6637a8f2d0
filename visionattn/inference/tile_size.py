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

__all__ = ["SHRUNK", "best_tile", "resized_side"]

DEFAULT_TILE = 1024
SHRUNK = 0.75
"""Tiles that are resized by less than this fraction of the factor for test images lose small objects."""
LOOKED_AT = 20


def best_tile(cfg: Mapping[str, Any]) -> int:
    """Return the side in pixels of tiles that the test pipeline resizes by the same factor as the test images.

    The size of the test images is that of the first files in their folder. If the folder does not exist, it is the size
    that the pipeline resizes to, or, for a pipeline that does not resize, the crop size of training, else 1024.
    """
    target = resized_side(cfg)
    sizes = list(itertools.islice(_test_sizes(cfg), LOOKED_AT))
    if not sizes:
        return max(32, target or _crop(cfg) or DEFAULT_TILE)
    short, long = (int(side) for side in np.median(np.sort(sizes, axis=1), axis=0))
    scale = _scale(cfg)
    if target is None or scale is None:
        return max(32, short)
    return max(32, round(target / min(max(scale) / long, min(scale) / short)))


def resized_side(cfg: Mapping[str, Any]) -> int | None:
    """Return the side that the test pipeline resizes square images to; None if it does not resize to a fixed size."""
    scale = _scale(cfg)
    return None if scale is None else min(scale)


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
