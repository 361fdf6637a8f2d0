"""What an exported file says about its model: JSON values by key.

``.onnx`` files have them as ``metadata_props``, each value that is not a text as JSON; ``.pt2`` files in
``visionattn.json``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from visionattn.errors import DataError
from visionattn.inference.export.network import Network

__all__ = ["metadata", "read_metadata"]

REQUIRED = ("visionattn", "task", "classes", "outputs", "layout", "color")


def metadata(network: Network, shape: Sequence[int], dynamic: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a network that is traced for images of a shape."""
    from visionattn import __version__

    about = network.description
    final = network.model if network.final else None
    return {
        "visionattn": __version__,
        "torch": torch.__version__,
        "task": about.task,
        "config": about.config or "",
        "license": about.license or "not stated",
        "classes": list(about.classes),
        "palette": [list(color) for color in about.palette or ()],
        "category_ids": list(about.category_ids or ()),
        "input": list(shape),
        "dynamic": list(dynamic),
        "image_size": list(about.image_size or ()),
        "layout": "NCHW",
        "color": "BGR" if network.bgr and not network.final else "RGB",
        "dtype": str(network.dtype).removeprefix("torch."),
        "pixels": "0..255" if network.normalized else "normalized by the caller",
        "mean": network.pixel_mean.flatten().tolist() if network.normalized else [],
        "size_divisor": 1 if network.resize else network.divisor,
        "pipeline": [] if network.resize else list(about.pipeline or ()),
        "resize": list(network.resize or ()),
        "unsupported_step": about.skipped or "",
        "outputs": list(network.names),
        "thresholds": dict(network.thresholds),
        "decoding": {} if final is None else final.about,
        "model": {} if final is None else final.stand_in,
    }


def read_metadata(properties: Mapping[str, str], name: str) -> dict[str, Any]:
    """Parse the ``metadata_props`` of an ONNX file.

    Args:
        properties: the entries.
        name: the file, for messages.

    Raises:
        DataError: entries are missing or malformed.
    """
    missing = [key for key in REQUIRED if key not in properties]
    if missing:
        raise DataError(
            f"{name}: has no metadata {missing[0]!r}, so its outputs cannot be interpreted; export it with "
            "visionattn export, and do not remove its metadata afterwards"
        )
    found: dict[str, Any] = {}
    for key, text in properties.items():
        try:
            found[key] = json.loads(text) if text[:1] in ("[", "{") or text.isdecimal() else text
        except ValueError as error:
            raise DataError(f"{name}: its metadata {key!r} are not valid JSON ({error})") from error
    kinds = {
        "classes": list,
        "outputs": list,
        "decoding": dict,
        "model": dict,
        "pipeline": list,
        "image_size": list,
        "resize": list,
        "thresholds": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(found.setdefault(key, kind()), kind):
            raise DataError(f"{name}: its metadata {key!r} must be a {kind.__name__}")
    return found
