"""Inference options that every job shares, and the choice of a device."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
            images. Each tile is resized by the test pipeline like a separate image, ``dilations="auto"`` follows
            the size of the tile, and limits on detections (``nms_pre``, ``max_per_img``) apply per tile. Choose a
            tile close to the size of the training images.
        overlap: overlap of neighboring tiles in pixels; None is a quarter of ``tile``. Objects larger than the
            overlap are merged from their parts in several tiles.
        tta: test-time augmentation: also predict on the horizontally mirrored image, and merge.
        scales: predict at these multiples of the test size, and merge.
        max_pixels: image files with more pixels are rejected before decoding.

    Raises:
        ConfigError: a value is out of range.
    """

    score_thr: float = 0.3
    batch_size: int = 8
    tile: int | None = None
    overlap: int | None = None
    tta: bool = False
    scales: tuple[float, ...] = (1.0,)
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 <= self.score_thr <= 1:  # NaN fails too
            raise ConfigError(f"`score_thr` must be in [0, 1], got {self.score_thr}")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {self.batch_size}")
        if self.max_pixels < 1:
            raise ConfigError(f"`max_pixels` must be at least 1, got {self.max_pixels}")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"`scales` must be one or more numbers in [0.1, 10], got {list(self.scales)}")
        if self.tile is None:
            if self.overlap is not None:
                raise ConfigError("`overlap` has no effect without `tile`; set `tile` or remove `overlap`")
            return
        if self.tile < 32:
            raise ConfigError(f"`tile` must be at least 32 pixels, got {self.tile}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.tile // 4)
        if not 0 <= self.overlap < self.tile:
            raise ConfigError(f"`overlap` must be in [0, {self.tile - 1}] for `tile` {self.tile}, got {self.overlap}")


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
            close = difflib.get_close_matches(name, sorted(common | special), 1)
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
