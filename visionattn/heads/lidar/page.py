"""Write a point cloud with its boxes as a self-contained HTML page with an interactive 3-D view."""

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.results import PointPrediction
from visionattn.inference.draw import class_color

__all__ = ["MAX_POINTS", "cloud_html", "write_cloud_html"]

MAX_POINTS = 150_000
"""Maximum number of points embedded in a page; larger point clouds are subsampled uniformly at random."""

UNIT = 0.01
"""Resolution of the 16-bit coordinates in meters; their range is 327 m."""


def cloud_html(prediction: PointPrediction, max_points: int = MAX_POINTS, score: float = 0.3) -> str:
    """Return the HTML text of the page.

    Args:
        prediction: prediction to show.
        max_points: see `MAX_POINTS`.
        score: initial score threshold.
    """
    points = prediction.points
    near = (np.abs(points[:, :3]) < 32767 * UNIT).all(1)
    points = points[near]
    if len(points) > max_points:
        points = points[np.random.default_rng(0).permutation(len(points))[:max_points]]
    intensity = points[:, 3] if points.shape[1] > 3 else np.zeros(len(points), np.float32)
    low, floor, high = np.percentile(points[:, 2], [1, 5, 98]) if len(points) else (-2.0, -2.0, 2.0)
    reach = float(np.percentile(np.hypot(points[:, 0], points[:, 1]), 99)) if len(points) else 40.0
    boxes: list[dict[str, Any]] = [
        {"box": _rounded(box), "label": int(label), "score": round(float(score_), 4)}
        for box, label, score_ in zip(prediction.boxes, prediction.labels, prediction.scores, strict=True)
    ]
    boxes += [{"box": _rounded(box), "truth": True} for box in prediction.truth]
    data = {
        "name": prediction.name or "point cloud",
        "classes": list(prediction.classes),
        "colors": [class_color(label)[::-1] for label in range(len(prediction.classes))],
        "boxes": boxes,
        "xyz": _text(np.rint(points[:, :3] / UNIT).astype("<i2")),
        "intensity": _text(np.rint(intensity.clip(0, 1) * 255).astype(np.uint8)),
        "unit": UNIT,
        "low": float(low),
        "high": float(max(high, low + 0.1)),
        "floor": float(floor),
        "middle": [float(v) for v in np.median(points[:, :2], axis=0)] if len(points) else [0.0, 0.0],
        "reach": reach,
        "step": 5 if reach < 30 else 10 if reach < 100 else 50,
        "score": float(score),
    }
    page = resources.files("visionattn.heads.lidar").joinpath("cloud_view.html").read_text(encoding="utf-8")
    # "</" could end the script element
    return page.replace("__DATA__", json.dumps(data, allow_nan=False).replace("</", "<\\/"))


def write_cloud_html(path: Path, prediction: PointPrediction, max_points: int = MAX_POINTS, score: float = 0.3) -> None:
    """Write the page; see `cloud_html` for the arguments.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.write_text(cloud_html(prediction, max_points, score), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in box]


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
