"""A replacement for COCO's package ``panopticapi``, which mmdet imports and which is not on PyPI.

mmdet's ``LoadPanopticAnnotations`` and ``CocoPanopticMetric`` use its segment ids, colors and statistics of panoptic
quality. `visionattn.data.panoptic` implements them; `install` makes them available under the names of the package,
unless the package itself is installed.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from visionattn.data.panoptic import VOID, ClassCounts, PanopticStats, id2rgb, rgb2id
from visionattn.errors import DataError
from visionattn.io.images import open_image
from visionattn.io.json import read_json
from visionattn.io.names import place

__all__ = ["install", "pq_compute"]

_NAME = "panopticapi"
_ORIGIN = "visionattn.engine.compat.panopticapi"
# Modules of mmdet that set these names to None if the package is missing when they are imported.
_USERS = (
    "mmdet.evaluation.functional.panoptic_utils",
    "mmdet.evaluation.metrics.coco_panoptic_metric",
    "mmdet.apis.det_inferencer",
)


def install() -> bool:
    """Make ``panopticapi``, ``panopticapi.utils`` and ``panopticapi.evaluation`` importable.

    Modules of mmdet that were imported before are updated. Calling it again has no further effect.

    Returns:
        True if the replacement is in use, False if the package itself is installed.
    """
    if _NAME in sys.modules:
        return getattr(sys.modules[_NAME].__spec__, "origin", None) == _ORIGIN
    if importlib.util.find_spec(_NAME) is not None:
        return False
    package = _module(_NAME, __path__=[])
    package.utils = _module(f"{_NAME}.utils", rgb2id=rgb2id, id2rgb=id2rgb)
    package.evaluation = _module(
        f"{_NAME}.evaluation",
        OFFSET=256**3,
        VOID=VOID,
        PQStat=PanopticStats,
        PQStatCat=ClassCounts,
        pq_compute=pq_compute,
    )
    names = {"panopticapi": package, **vars(package.utils), **vars(package.evaluation)}
    for user in filter(None, map(sys.modules.get, _USERS)):
        for name in ("panopticapi", "OFFSET", "VOID", "PQStat", "id2rgb", "rgb2id"):
            if hasattr(user, name):
                setattr(user, name, names[name])
    return True


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name, "Replacement for COCO's panopticapi; see visionattn.engine.compat.panopticapi.")
    module.__spec__ = ModuleSpec(name, loader=None, origin=_ORIGIN, is_package="__path__" in content)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def pq_compute(
    gt_json_file: str | Path,
    pred_json_file: str | Path,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Compute the panoptic quality of predictions in COCO's panoptic format.

    Args:
        gt_json_file, pred_json_file: annotations and predictions.
        gt_folder, pred_folder: folders of the segment maps; by default the path of the JSON file without its suffix.

    Returns:
        ``All``, ``Things`` and ``Stuff``, each with ``pq``, ``sq`` and ``rq`` in [0, 1] and the number of classes
        ``n``, and ``per_class`` by category id.

    Raises:
        DataError: an image has no prediction, a map cannot be read, or a file has another format.
    """
    try:
        return _quality(gt_json_file, pred_json_file, gt_folder, pred_folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{gt_json_file} or {pred_json_file}: is not in COCO's panoptic format ({type(error).__name__}: {text})"
        ) from error


def _quality(
    gt_json_file: str | Path, pred_json_file: str | Path, gt_folder: str | Path | None, pred_folder: str | Path | None
) -> dict[str, Any]:
    truth, found = (read_json(f) for f in (gt_json_file, pred_json_file))
    folders = [
        Path(folder) if folder else Path(file).with_suffix("")
        for folder, file in ((gt_folder, gt_json_file), (pred_folder, pred_json_file))
    ]
    found_by_image = {a["image_id"]: a for a in found["annotations"]}
    stats = PanopticStats()
    for annotation in truth["annotations"]:
        prediction = found_by_image.get(annotation["image_id"])
        if prediction is None:
            raise DataError(f"{pred_json_file}: has no prediction for the image {annotation['image_id']!r}")
        places = zip(folders, (annotation, prediction), strict=True)
        maps = [_read_map(place(a["file_name"], folder, f"{folder}.json")) for folder, a in places]
        stats.add_image(maps[0], annotation["segments_info"], maps[1], prediction["segments_info"])
    categories = {c["id"]: c for c in truth["categories"]}
    groups = {"All": None, "Things": True, "Stuff": False}
    results: dict[str, Any] = {name: stats.pq_average(categories, things)[0] for name, things in groups.items()}
    return {**results, "per_class": stats.pq_average(categories, None)[1]}


def _read_map(path: Path) -> np.ndarray:
    try:
        with open_image(path) as image:
            return rgb2id(np.asarray(image.convert("RGB")))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for damaged files
        raise DataError(f"{path}: cannot be read as a panoptic map ({error})") from error
