"""Result files of detectors: labels in the format of YOLO, cut-out objects, and COCO results of a whole run."""

import contextlib
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require
from visionattn.inference.results import Prediction
from visionattn.inference.writing import temporary_name, write_png
from visionattn.io.names import safe_name

__all__ = ["coco_results", "write_crops", "write_labels", "yolo_lines"]

FINE = 2
"""Contours are traced in masks enlarged by this factor, since they run through the centers of pixels."""
TOLERANCE = 0.5
"""Largest distance in pixels between a contour and its polygon."""


def yolo_lines(prediction: Prediction, scores: bool) -> list[str]:
    """Return one line per object: the label, then center, width and height of the box, or the polygon of the mask.

    All coordinates are fractions of the image size. Of a mask in several parts, the polygon is that of the largest
    one. Objects without a pixel in their mask have the rectangle of their box.

    Args:
        prediction: boxes, and masks if there are any.
        scores: append the score to each line.
    """
    height, width = prediction.image_size
    lines = []
    for index, (label, box) in enumerate(zip(prediction.labels, prediction.boxes.astype(float), strict=True)):
        x0, y0, x1, y1 = box / (width, height, width, height)
        if prediction.masks is None:
            values = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        else:
            points = _polygon(prediction.masks.crops[index], prediction.masks.corners[index])
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            values = corners.ravel() if points is None else (points / (width, height)).ravel()
        words = [str(int(label)), *(f"{value:.6f}" for value in values.clip(0, 1))]
        lines.append(" ".join([*words, f"{prediction.scores[index]:.5f}"] if scores else words))
    return lines


def _polygon(crop: np.ndarray, corner: tuple[int, int]) -> np.ndarray | None:
    """Return the outline of the largest part of a mask in pixels, ``[N, 2]``, or None without pixels."""
    if not crop.any():
        return None
    cv2 = require("cv2")
    fine = np.repeat(np.repeat(crop.astype(np.uint8), FINE, axis=0), FINE, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    simple = cv2.approxPolyDP(largest, FINE * TOLERANCE, True).reshape(-1, 2)
    if len(simple) < 3:
        x, y, w, h = cv2.boundingRect(largest)
        simple = np.array([[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]])
    return (simple + 0.5) / FINE + corner


def write_labels(out: Path, name: str, prediction: Prediction, scores: bool) -> dict[str, str]:
    """Write ``labels/<name>.txt`` and the class names, ``labels/classes.txt``; see `yolo_lines`.

    Returns:
        The entry of the record.

    Raises:
        DataError: a file cannot be written.
    """
    folder = out / "labels"
    text = "".join(f"{line}\n" for line in yolo_lines(prediction, scores))
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
        (folder / "classes.txt").write_text("".join(f"{n}\n" for n in prediction.classes), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    return {"labels": f"labels/{name}.txt"}


def write_crops(out: Path, name: str, prediction: Prediction) -> dict[str, list[str]]:
    """Write the box of each object as ``crops/<class>/<name>_<number>.png``, numbered by descending score.

    Boxes are rounded outwards to whole pixels. Files of an earlier run with the same name are removed.

    Args:
        out: output folder.
        name: file name without suffix.
        prediction: with its image.

    Returns:
        The entry of the record: one path per object, None for boxes without a pixel.

    Raises:
        DataError: a file cannot be written.
    """
    height, width = prediction.image_size
    for earlier in (out / "crops").glob(f"*/{glob.escape(name)}_*.png"):
        if earlier.stem[len(name) + 1 :].isdigit():
            earlier.unlink()
    written, numbers = [], Counter()
    for class_name, box in zip(prediction.names, prediction.boxes, strict=True):
        x0, y0 = np.floor(box[:2]).astype(int).clip(0)
        x1, y1 = np.ceil(box[2:]).astype(int).clip(max=(width, height))
        if x1 <= x0 or y1 <= y0:
            written.append(None)
            continue
        folder = safe_name(class_name, "class")
        numbers[folder] += 1
        path = f"crops/{folder}/{name}_{numbers[folder]}.png"
        try:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{(out / path).parent}: cannot be created ({error.strerror})") from error
        write_png(out / path, prediction.image[y0:y1, x0:x1])
        written.append(path)
    return {"crops": written}


@contextlib.contextmanager
def coco_results(out: Path, kinds: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write ``results.bbox.json`` and ``results.segm.json``: lists that ``COCO.loadRes`` of pycocotools reads.

    ``image_id`` is that of ``predictions.json``. The files appear when the block ends without an error, unless no image
    was predicted.

    Args:
        out: output folder.
        kinds: ``"bbox"``, ``"segm"`` or both.

    Yields:
        A function that adds the ``detections`` of a record.
    """
    keys = {"bbox": "bbox", "segm": "segmentation"}
    with contextlib.ExitStack() as stack:
        targets = {kind: out / f"results.{kind}.json" for kind in kinds}
        files = {kind: stack.enter_context(temporary_name(path).open("w")) for kind, path in targets.items()}
        counts: Counter[str] = Counter()
        images = 0

        def add(record: Mapping[str, Any]) -> None:
            nonlocal images
            images += "detections" in record
            for found in record.get("detections", ()):
                for kind, file in files.items():
                    entry = {key: found[key] for key in ("image_id", "category_id", keys[kind], "score")}
                    file.write(f"{',' if counts[kind] else '['}\n{json.dumps(entry)}")
                    counts[kind] += 1

        try:
            yield add
        except BaseException:
            for path in targets.values():
                temporary_name(path).unlink(missing_ok=True)
            raise
        for kind, file in files.items():
            file.write("\n]\n" if counts[kind] else "[]\n")
    for path in targets.values():
        if images:
            os.replace(temporary_name(path), path)
        else:
            temporary_name(path).unlink()
