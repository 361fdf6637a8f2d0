"""Inference options that every job shares, and the choice of a device."""

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from visionattn.errors import ConfigError
from visionattn.io.images import MAX_PIXELS

__all__ = ["Options", "pick_device", "split_options"]


@dataclass(frozen=True)
class Options:
    """Inference options.

    Attributes:
        score_thr: detections with a lower score are discarded.
        batch_size: number of inputs (or tiles) per forward pass. Only images of the same size share a batch, so
            that the prediction for one image does not depend on the others. On a CPU, tiles share a batch only
            while they are small.
        tile: side length in pixels of the square tiles that larger images are cut into; None processes whole
            images. ``"auto"`` chooses the size at which objects appear to the model as in its test images. Each tile is
            resized by the test pipeline like a separate image, ``dilations="auto"`` follows the size of the tile, and
            limits on detections (``nms_pre``, ``max_per_img``) apply per tile.
        overlap: overlap of neighboring tiles in pixels; None is a quarter of ``tile``. Objects larger than the
            overlap are merged from their parts in several tiles.
        tta: test-time augmentation: also predict on the horizontally mirrored image, and merge.
        scales: predict at these multiples of the test size, and merge.
        max_pixels: image files with more pixels are rejected before decoding.
        channel_order: order of the channels of input arrays, ``"bgr"`` as read by OpenCV, or ``"rgb"``, such as
            ``np.asarray`` of a PIL image. Files and PIL images need no order.

    Raises:
        ConfigError: a value is out of range.
    """

    score_thr: float = 0.3
    batch_size: int = 8
    tile: int | Literal["auto"] | None = None
    overlap: int | None = None
    tta: bool = False
    scales: tuple[float, ...] = (1.0,)
    max_pixels: int = MAX_PIXELS
    channel_order: Literal["bgr", "rgb"] = "bgr"

    def __post_init__(self) -> None:
        if not 0 <= self.score_thr <= 1:  # NaN fails too
            raise ConfigError(f"`score_thr` must be in [0, 1], got {self.score_thr}")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {self.batch_size}")
        if self.channel_order not in ("bgr", "rgb"):
            raise ConfigError(f"`channel_order` must be 'bgr' or 'rgb', got {self.channel_order!r}")
        if self.max_pixels < 1:
            raise ConfigError(f"`max_pixels` must be at least 1, got {self.max_pixels}")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"`scales` must be one or more numbers in [0.1, 10], got {list(self.scales)}")
        if self.tile is None:
            if self.overlap is not None:
                raise ConfigError("`overlap` has no effect without `tile`; set `tile` or remove `overlap`")
            return
        if self.tile == "auto":  # `sized` replaces it, when the model is known
            return
        if not isinstance(self.tile, numbers.Integral) or self.tile < 32:
            raise ConfigError(f"`tile` must be at least 32 pixels, or 'auto', got {self.tile!r}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.tile // 4)
        if not 0 <= self.overlap < self.tile:
            raise ConfigError(f"`overlap` must be in [0, {self.tile - 1}] for `tile` {self.tile}, got {self.overlap}")

    def sized(self, tile: int) -> "Options":
        """Return the options with ``tile`` in place of ``"auto"``."""
        return dataclasses.replace(self, tile=tile) if self.tile == "auto" else self


SYNONYMS = {
    "augment": "tta", "batch": "batch_size", "conf": "score_thr", "conf_thres": "score_thr", "confidence": "score_thr",
    "confidence_threshold": "score_thr", "crop_size": "tile", "min_score": "score_thr", "overlap_ratio": "overlap",
    "score": "score_thr", "slice_size": "tile", "threshold": "score_thr", "tile_size": "tile",
}  # fmt: skip
"""Names that other libraries use for the same options."""


def split_options(given: Mapping[str, Any], job_options: type) -> tuple[Options, Any]:
    """Split keyword arguments into `Options` and the options of a job.

    Args:
        given: option names and values.
        job_options: the dataclass with the options of the job.

    Raises:
        TypeError: an option is unknown; the message suggests a similar name.
        ConfigError: a value is out of range.
    """
    common = {field.name for field in dataclasses.fields(Options)}
    special = {field.name for field in dataclasses.fields(job_options)}
    for name in given:
        if name not in common | special:
            same = [SYNONYMS[name]] if name in SYNONYMS else []
            close = same or difflib.get_close_matches(name, sorted(common | special), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known options: {', '.join(sorted(common | special))}"
            raise TypeError(f"unknown option {name!r}; {hint}")
    return (
        Options(**{name: value for name, value in given.items() if name in common}),
        job_options(**{name: value for name, value in given.items() if name in special}),
    )


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the named device; None selects the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is unknown, or the device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"`device` {device!r} is unknown; use cpu, cuda, or cuda:N") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ConfigError(f"`device` {device} is not available: PyTorch found {count} CUDA devices; use cpu")
    return found
