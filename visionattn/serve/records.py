"""The answer to a request for predictions: the records of ``predictions.json``, with data URLs in place of files."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from visionattn import __version__
from visionattn.errors import DataError, require
from visionattn.inference.predictor import Predictor
from visionattn.inference.writing import encode_png, map_pixels, to_json

__all__ = ["build_record", "data_url", "describe_answer", "encode_jpeg"]

JPEG_QUALITY = 92


def describe_answer(name: str, predictor: Predictor) -> dict[str, Any]:
    """Return the entries of an answer that concern all inputs, as at the top of ``predictions.json``."""
    settings = asdict(predictor.options) | asdict(predictor.job.own)
    return {
        "visionattn": __version__,
        "model": {"name": name, "task": predictor.job.name, "device": str(predictor.model.device)},
        "settings": {key: value for key, value in settings.items() if value is not None},
        **predictor.job.describe_model(),
    }


def build_record(
    predictor: Predictor,
    item: Any,
    prediction: Any,
    index: int,
    label: str,
    wanted: Mapping[str, bool],
    keep_page: Callable[[str], str],
) -> str:
    """Return the record of one input as JSON.

    Args:
        predictor: the predictor.
        item: the input, as read by the job.
        prediction: its prediction.
        index: its position in the request.
        label: its name.
        wanted: whether to add ``maps``, ``overlay``, ``preview`` and ``view``.
        keep_page: stores a page with a view, and returns its address.

    Raises:
        DataError: the prediction has values that are not finite.
    """
    job = predictor.job
    found = job.record(prediction, index)
    record = {f"{job.records.removesuffix('s')}_id": index, "file": label}
    if isinstance(item, np.ndarray):
        record |= {"width": item.shape[1], "height": item.shape[0]}
    record |= {"seconds": round(prediction.seconds, 5)} | found
    record["lines"] = job.lines(found, job.count(prediction))
    if wanted["maps"]:
        record |= {kind: data_url(encode_png(map_pixels(kind, m))) for kind, m in job.maps(prediction).items()}
    if wanted["overlay"] or job.overlay_is_result:
        record["overlay"] = data_url(encode_png(job.draw(item, prediction)))
    if wanted["preview"] and isinstance(item, np.ndarray):
        record["preview"] = data_url(encode_jpeg(item), "image/jpeg")
    if wanted["view"] and (page := job.view(prediction)) is not None:
        record["view"] = keep_page(page)
    try:
        return to_json(record)
    except ValueError as error:
        raise DataError(f"{label}: the prediction has values that are not finite") from error


def encode_jpeg(image: np.ndarray) -> bytes:
    """Return a BGR image as JPEG."""
    cv2 = require("cv2")
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """Return content as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
