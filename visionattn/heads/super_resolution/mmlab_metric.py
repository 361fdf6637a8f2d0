"""PSNR and SSIM for mmengine's evaluator, in one process or several."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError
from visionattn.heads.super_resolution.imresize import imresize
from visionattn.heads.super_resolution.metrics import MAX_PSNR, psnr, ssim

__all__ = ["SuperResolutionMetric"]

CHANNELS = ("Y", "RGB")


@METRICS.register_module()
class SuperResolutionMetric(BaseMetric):
    """Mean PSNR and SSIM over the images; see `visionattn.heads.super_resolution.metrics`.

    ``PSNR_Y`` and ``SSIM_Y`` are computed on Y after clipping and rounding to 8 bits, the usual protocol;
    ``PSNR_Y_raw`` and ``SSIM_Y_raw`` on the raw output, as in the published code of CATANet. Images that are equal to
    the truth count as 80 dB. Images that distributed samplers repeat to fill the last batch are counted once.

    Args:
        border: pixels cut off at each border; None is the factor of the enlargement, and 0 cuts nothing.
        channels: ``"Y"``, ``"RGB"``, or both.
        bicubic: also report ``PSNR_Y_bicubic`` etc. of bicubic enlargement, rounded to 8 bits.
        collect_device, prefix, collect_dir: see ``mmengine.evaluator.BaseMetric``.

    Raises:
        ConfigError: an argument is out of range.
    """

    default_prefix = None

    def __init__(
        self,
        border: int | None = None,
        channels: Sequence[str] = ("Y",),
        bicubic: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if border is not None and border < 0:
            raise ConfigError(f"SuperResolutionMetric: `border` must be at least 0, got {border}")
        if not channels or set(channels) - set(CHANNELS):
            raise ConfigError(f"SuperResolutionMetric: `channels` must be Y, RGB or both, got {list(channels)}")
        self.border, self.channels, self.bicubic = border, tuple(channels), bicubic

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compare each enlarged image with its truth."""
        for index, sample in enumerate(data_samples):
            truth = sample["gt_image"].cpu().double() / 255
            enlarged = sample["pred_image"].cpu().double()
            scale = int(sample["scale"])
            border = scale if self.border is None else self.border
            figures = {}
            for channel in self.channels:
                luma = channel == "Y"
                for name, raw in ((channel, False), (f"{channel}_raw", True)):
                    figures |= _scores(name, enlarged, truth, border, luma, raw)
                if self.bicubic:
                    low = data_batch["inputs"][index].permute(1, 2, 0).numpy()[..., ::-1]
                    plain = torch.from_numpy(imresize(low, scale).transpose(2, 0, 1) / 255)
                    figures |= _scores(f"{channel}_bicubic", plain, truth, border, luma, False)
            self.results.append({"key": sample.get("img_path"), "figures": figures})

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Return the means over the images of all processes."""
        seen: dict[Any, dict] = {}
        for number, record in enumerate(results):
            seen.setdefault(number if record["key"] is None else record["key"], record["figures"])
        records = list(seen.values())
        return {name: float(np.mean([record[name] for record in records])) for name in records[0]}


def _scores(name: str, image: Any, truth: Any, border: int, luma: bool, raw: bool) -> dict[str, float]:
    ratio = psnr(image, truth, border, luma, raw)
    return {
        f"PSNR_{name}": MAX_PSNR if math.isinf(ratio) else ratio,
        f"SSIM_{name}": ssim(image, truth, border, luma, raw),
    }
