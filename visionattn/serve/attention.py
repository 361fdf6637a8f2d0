"""Attention maps of a backbone for one query, for the page and for ``POST /attention``."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from visionattn.errors import ConfigError
from visionattn.inference.explain.attention import AttentionCall, record_attention
from visionattn.inference.explain.loading import run_backbone
from visionattn.inference.writing import encode_png
from visionattn.serve.models import ServedModel
from visionattn.serve.records import data_url

__all__ = ["AttentionMaps"]

KEPT = 2
"""Number of images whose forward pass is kept, so that further queries take only a backward pass of each layer."""
MOST_VALUES = 1 << 26
"""Images with more values of all layers are not kept."""


class AttentionMaps:
    """Computes attention maps; only the thread that runs the models may call it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], list[AttentionCall]] = OrderedDict()

    def maps(
        self, model: ServedModel, image: np.ndarray, x: float, y: float, layers: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Return the attention weights of the query at a position, for each layer and head.

        Args:
            model: the model; its backbone is used.
            image: BGR uint8 ``[H, W, 3]``.
            x, y: position in pixels of the image.
            layers: indices of the layers; None is all.

        Returns:
            A dict with ``layers``: the index, name, grid (rows, columns) and query (row, column) of each layer,
            the largest weight of each head, and ``maps``: one PNG image per head with gray values that are 255
            where the weight is largest.

        Raises:
            ConfigError: the position is outside the image, there are more indices than layers, an index is out of
                range, or the model has no attention over a feature map of images.
        """
        height, width = image.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"`x` and `y` must be inside the image of {width}x{height} pixels, got {x:g} {y:g}")
        calls = self._calls(model, image)
        if layers is not None and len(layers) > len(calls):
            raise ConfigError(f"`layers` must be at most {len(calls)} indices, got {len(layers)}")
        chosen = range(len(calls)) if layers is None else list(dict.fromkeys(layers))
        wrong = [index for index in chosen if not 0 <= index < len(calls)]
        if wrong:
            raise ConfigError(f"`layers` must be in [0, {len(calls) - 1}], got {wrong[0]}")
        found = [_layer(index, calls[index], x / width, y / height) for index in chosen]
        return {"width": width, "height": height, "x": x, "y": y, "layers": found}

    def _calls(self, model: ServedModel, image: np.ndarray) -> list[AttentionCall]:
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        key = (model.name, digest)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        predictor = model.predictor
        calls = record_attention(*run_backbone(predictor.model, type(predictor.job), image, name=model.name))
        if not calls:
            raise ConfigError(f"the model {model.name} does not support attention maps")
        if sum(call.value.numel() for call in calls) <= MOST_VALUES:
            self._kept[key] = calls
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return calls


def _layer(index: int, call: AttentionCall, across: float, down: float) -> dict[str, Any]:
    rows, columns = call.grid
    row, column = int(down * rows), int(across * columns)
    weights = call.weights(row, column).float().cpu().numpy()
    peaks = weights.max(axis=(1, 2))
    scaled = weights / np.maximum(peaks, 1e-12)[:, None, None]
    return {
        "index": index,
        "name": call.name,
        "grid": [rows, columns],
        "query": [row, column],
        "maxima": [round(float(peak), 6) for peak in peaks],
        "maps": [data_url(encode_png(np.rint(255 * head.clip(0, 1)).astype(np.uint8))) for head in scaled],
    }
