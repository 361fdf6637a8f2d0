"""Forgery localization and detection metrics for mmengine's evaluator, in one process or several."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError
from visionattn.heads.forgery.metrics import MODES, PooledPixels, pixel_scores, summarize

__all__ = ["ForgeryMetric"]

CONVENTIONS = ("tampered", "all", "benco")
IGNORED = 255


MAIN = ("pixel_f1", "pixel_auc", "image_auc", "image_accuracy")
"""Order of the main metrics; learning curves and tables show the first four."""


@METRICS.register_module()
class ForgeryMetric(BaseMetric):
    """Pixel and image metrics of forgery; see `visionattn.heads.forgery.metrics`.

    Reads ``gt_sem_seg`` (1 forged, 255 ignored), ``forgery_prob`` and ``forgery_score`` of each data sample. Images
    that distributed samplers repeat to fill the last batch are counted once.

    Args:
        convention: images over which pixel metrics are averaged: ``"tampered"`` (forged images, the published
            convention), ``"all"``, or ``"benco"`` (all, with the AUC of IMDLBenCo, which ignores ties and is 0 for
            authentic images).
        modes: one or more of ``"origin"``, ``"reverse"`` and ``"double"``; metric names of all modes but the first
            have the mode as suffix.
        pooled: also report metrics pooled over all pixels, ``pooled_f1`` etc.
        threshold: threshold of pixels and images.
        size: evaluate at this height and width instead of the image size, as frameworks that resize do.
        collect_device, prefix, collect_dir: see ``mmengine.evaluator.BaseMetric``.

    Raises:
        ConfigError: if ``convention`` or ``modes`` is unknown.
    """

    default_prefix = None

    def __init__(
        self,
        convention: str = "tampered",
        modes: Sequence[str] = ("origin",),
        pooled: bool = False,
        threshold: float = 0.5,
        size: tuple[int, int] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if convention not in CONVENTIONS:
            raise ConfigError(
                f"ForgeryMetric: `convention` must be one of {', '.join(CONVENTIONS)}, got {convention!r}"
            )
        unknown = [m for m in modes if m not in MODES]
        if unknown or not modes:
            raise ConfigError(f"ForgeryMetric: `modes` must be one or more of {', '.join(MODES)}, got {list(modes)}")
        self.convention, self.modes, self.pooled = convention, tuple(modes), pooled
        self.threshold, self.size = threshold, size

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Evaluate each image of a batch and keep a small record of it."""
        for sample in data_samples:
            truth = torch.as_tensor(_data(sample["gt_sem_seg"])).squeeze()
            probability = torch.as_tensor(_data(sample["forgery_prob"])).float().squeeze().cpu()
            truth = truth.cpu()
            if self.size is not None:
                probability = F.interpolate(probability[None, None], self.size, mode="bilinear")[0, 0]
                truth = F.interpolate(truth[None, None].float(), self.size, mode="nearest")[0, 0]
            if truth.shape != probability.shape:
                raise ConfigError(
                    f"{sample.get('img_path', 'an image')}: the mask must have the shape of the prediction "
                    f"{tuple(probability.shape)}, got {tuple(truth.shape)}; load annotations after resizing"
                )
            truth, probability = truth.numpy(), probability.numpy()
            valid = None if not (truth == IGNORED).any() else truth != IGNORED
            truth = truth == 1
            label = sample.get("forgery_label")
            label = bool(truth.any()) if label is None else bool(label)
            auc = "benco" if self.convention == "benco" else "exact"
            pixel: dict[str, float] = {}
            for mode in self.modes:
                found = pixel_scores(probability, truth, valid, mode=mode, threshold=self.threshold, auc=auc)
                suffix = "" if mode == self.modes[0] else f"_{mode}"
                pixel |= {f"{name}{suffix}": value for name, value in found.items()}
            record = {
                "label": int(label),
                "score": float(sample["forgery_score"]),
                "pixel": pixel,
                "key": sample.get("sample_idx", sample.get("img_path")),
            }
            if self.pooled and (label or self.convention != "tampered"):
                pool = PooledPixels(self.threshold, bins=512)
                pool.add(probability, truth, valid)
                record["counts"], record["histogram"] = pool.counts, pool.histogram.astype(np.uint32)
            self.results.append(record)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the metrics from the records of all processes."""
        seen: dict[Any, dict] = {}
        for number, record in enumerate(results):
            seen.setdefault(number if record["key"] is None else record["key"], record)
        records = list(seen.values())
        include = {"tampered": False, "all": True, "benco": "benco"}[self.convention]
        figures = summarize(records, include, self.threshold)
        if self.pooled:
            pool = PooledPixels(self.threshold, bins=512)
            for record in records:
                if "counts" in record:
                    pool.counts += record["counts"]
                    pool.histogram += record["histogram"]
            figures |= {f"pooled_{k}": v for k, v in pool.scores().items() if not np.isnan(v)}
        return {name: figures[name] for name in MAIN if name in figures} | figures


def _data(value: Any) -> Any:
    """Return the array of a PixelData, of its dict form, or the array itself."""
    if isinstance(value, dict):
        return value["data"]
    return getattr(value, "data", value) if not isinstance(value, (np.ndarray, torch.Tensor)) else value
