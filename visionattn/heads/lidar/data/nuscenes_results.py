"""Attributes of nuScenes objects, and the submission format of its detection task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.folders import write_json

__all__ = ["ATTRIBUTES", "MAX_BOXES", "attribute_names", "result_rows", "write_results"]

ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
"""The attributes of the detection task."""

MAX_BOXES = 500
"""Maximum number of boxes per sample in a submission."""

MOVING = 0.2
"""Speed in meters per second above which an object is taken to move."""

_PARKED, _CYCLE = ("vehicle.moving", "vehicle.parked"), ("cycle.with_rider", "cycle.without_rider")
_BY_CLASS = {
    "car": _PARKED, "truck": _PARKED, "construction_vehicle": _PARKED, "trailer": _PARKED,
    "bus": ("vehicle.moving", "vehicle.stopped"), "motorcycle": _CYCLE, "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"), "barrier": ("", ""), "traffic_cone": ("", ""),
}  # fmt: skip
"""Attribute of a moving and of a standing object of each class; barriers and cones have none."""


def attribute_names(classes: Sequence[str], labels: np.ndarray, velocity: np.ndarray) -> list[str] | None:
    """Attributes of detections from their class and speed, which is the usual rule (CenterPoint, CVPR 2021).

    Args:
        classes: class names by label.
        labels: int64 ``[N]``.
        velocity: ``[N, 2]`` in meters per second.

    Returns:
        A name of `ATTRIBUTES` for each detection, or ``""`` if its class has none; None if a class is not of nuScenes.
    """
    if not set(classes) <= set(_BY_CLASS):
        return None
    moving = np.linalg.norm(velocity, axis=-1) > MOVING
    return [_BY_CLASS[classes[label]][0 if moves else 1] for label, moves in zip(labels, moving, strict=True)]


def result_rows(
    token: str,
    classes: Sequence[str],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    to_global: np.ndarray,
    velocity: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Detections of one sample in the submission format, at most `MAX_BOXES`, in descending order of score.

    Args:
        token: token of the sample.
        classes: class names by label.
        boxes: ``[N, 7]``, in the frame of the sensor.
        scores: ``[N]``.
        labels: int64 ``[N]``.
        to_global: transform ``[4, 4]`` from the sensor's to the global frame.
        velocity: ``[N, 2]`` in the frame of the sensor, in meters per second; None for 0.

    Returns:
        For each detection a dict with ``sample_token``, ``translation``, ``size`` (width, length, height),
        ``rotation`` (quaternion w, x, y, z), ``velocity``, ``detection_name``, ``detection_score`` and
        ``attribute_name``.
    """
    rotation = require("scipy.spatial.transform").Rotation
    boxes = np.asarray(boxes, np.float64)
    velocity = np.zeros((len(boxes), 2)) if velocity is None else np.asarray(velocity, np.float64)
    attributes = attribute_names(classes, labels, velocity) or [""] * len(boxes)
    turn = to_global[:3, :3]
    centers = boxes[:, :3] @ turn.T + to_global[:3, 3]
    speeds = np.column_stack([velocity, np.zeros(len(boxes))]) @ turn.T
    rows = []
    for index in np.argsort(-np.asarray(scores), kind="stable")[:MAX_BOXES]:
        x, y, z, w = (rotation.from_matrix(turn) * rotation.from_euler("z", boxes[index, 6])).as_quat()
        rows.append({
            "sample_token": token,
            "translation": [round(float(value), 4) for value in centers[index]],
            "size": [round(float(value), 4) for value in boxes[index, [4, 3, 5]]],
            "rotation": [round(float(value), 6) for value in (w, x, y, z)],
            "velocity": [round(float(value), 4) for value in speeds[index, :2]],
            "detection_name": classes[labels[index]],
            "detection_score": round(float(scores[index]), 6),
            "attribute_name": attributes[index],
        })  # fmt: skip
    return rows


def write_results(path: str | Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write a file in the submission format, of detections from LiDAR alone.

    Args:
        path: the file, usually ``results_nusc.json``.
        results: for each sample token the rows of `result_rows`.

    Raises:
        DataError: if the file cannot be written.
    """
    used = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map", "external")}
    try:
        write_json(Path(path), {"meta": used, "results": results})
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
