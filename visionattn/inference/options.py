"""Inference options that every job shares, and the choice of a device."""

import dataclasses
import difflib
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from visionattn.errors import ConfigError
from visionattn.io.images import MAX_PIXELS

__all__ = ["SCORE_THR", "STYLE", "ExportOptions", "Options", "check_style", "pick_device", "split_options"]

SCORE_THR = 0.3
"""Default of ``score_thr``."""

STYLE = ("opacity", "line_width", "hide_labels")
"""Options for drawing; the predictions of jobs that are ``styled`` have fields of these names."""


@dataclass(frozen=True)
class Options:
    """Inference options.

    Attributes:
        score_thr: detections with a lower score are discarded. A mapping from names to thresholds has one threshold for
            each class; other classes have the default. ``"best"``, or a file ``thresholds.json``, uses the thresholds
            that ``visionattn test --report`` has found for the run; `Predictor` replaces it.
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
        opacity: opacity of drawn masks, class maps and heat maps, in [0, 1]; None chooses it by their number.
        line_width: width of drawn lines in pixels; None chooses it by the size of the image.
        hide_labels: draw no names, scores and legends.
        amp: compute backbone, neck and heads in float16 on CUDA and in bfloat16 on a CPU, and the rest in float32.

    Raises:
        ConfigError: a value is out of range.
    """

    score_thr: float | str | Mapping[str, float] = SCORE_THR
    batch_size: int = 8
    tile: int | Literal["auto"] | None = None
    overlap: int | None = None
    tta: bool = False
    scales: tuple[float, ...] = (1.0,)
    max_pixels: int = MAX_PIXELS
    channel_order: Literal["bgr", "rgb"] = "bgr"
    opacity: float | None = None
    line_width: int | None = None
    hide_labels: bool = False
    amp: bool = False

    def __post_init__(self) -> None:
        _check_scores(self.score_thr)
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {self.batch_size}")
        check_style(self.opacity, self.line_width)
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


@dataclass(frozen=True)
class ExportOptions:
    """Options of exported models.

    Attributes:
        pasted: instance masks are pasted into the image, ``[B, K, H, W]``, instead of relative to their boxes.
        max_detections: number of rows K of the outputs of detectors; None is the maximum of the model.
        uint8: the image is uint8 instead of float32.
        license: license of the weights, for the metadata.
        resize: the program takes images of any size, resizes them as for testing, and its outputs refer to them.
    """

    pasted: bool = False
    max_detections: int | None = None
    uint8: bool = False
    license: str | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        if self.max_detections is not None and self.max_detections < 1:
            raise ConfigError(f"`max_detections` must be at least 1, got {self.max_detections}")


def _check_scores(score_thr: float | str | Mapping[str, float]) -> None:
    if isinstance(score_thr, str):
        if score_thr != "best" and not score_thr.endswith(".json"):
            raise ConfigError(f"`score_thr` must be a number, 'best', or a .json file, got {score_thr!r}")
        return
    for value in score_thr.values() if isinstance(score_thr, Mapping) else [score_thr]:
        if not 0 <= value <= 1:  # NaN fails too
            raise ConfigError(f"`score_thr` must be in [0, 1], got {value}")


def check_style(opacity: float | None, line_width: int | None) -> None:
    """Check the options for drawing.

    Raises:
        ConfigError: a value is out of range.
    """
    if opacity is not None and not 0 <= opacity <= 1:
        raise ConfigError(f"`opacity` must be in [0, 1], got {opacity}")
    if line_width is not None and not 1 <= line_width <= 100:
        raise ConfigError(f"`line_width` must be in [1, 100] pixels, got {line_width}")


SYNONYMS = {
    "alpha": "opacity", "augment": "tta", "batch": "batch_size", "conf": "score_thr", "conf_thres": "score_thr",
    "confidence": "score_thr", "confidence_threshold": "score_thr", "min_score": "score_thr", "score": "score_thr",
    "overlap_ratio": "overlap", "slice_size": "tile", "thickness": "line_width", "threshold": "score_thr",
    "tile_size": "tile",
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
    """Return the named device; None selects the GPU of this process, which is the first one, if any, else the CPU.

    Raises:
        ConfigError: the name is unknown, or the device is not available.
    """
    if device is None:
        index = os.environ.get("LOCAL_RANK", "0")  # set by torchrun
        return torch.device(f"cuda:{index}" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"`device` {device!r} is unknown; use cpu, cuda, or cuda:N") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ConfigError(f"`device` {device} is not available: PyTorch found {count} CUDA devices; use cpu")
    return found
