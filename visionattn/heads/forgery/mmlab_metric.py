"""Forgery localization and detection measured by mmengine's evaluator, on one process or many."""

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


@METRICS.register_module()
class ForgeryMetric(BaseMetric):
    """Pixel and image measures of forgery, for each image and over the set; see `visionattn.heads.forgery.metrics`.

    Reads ``gt_sem_seg`` (1 forged, 255 not counted), ``forgery_prob`` and ``forgery_score`` of each data sample. Of
    the images that the samplers of several processes repeat to fill the last batches, each counts once.

    Args:
        convention: which images pixel measures are averaged over: ``"tampered"``, as published; ``"all"``; or
            ``"benco"``, all, with IMDLBenCo's AUC (no ties, 0 for authentic images).
        modes: of ``"origin"``, ``"reverse"`` and ``"double"``; the names of all but the first carry the mode.
        pooled: also the measures over all pixels of the set as one, ``pooled_f1`` and so on.
        threshold: of pixels and images.
        size: measure at this (height, width) in place of the image's own, as frameworks that resize do.
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
            raise ConfigError(f"ForgeryMetric convention={convention!r} must be one of {CONVENTIONS}")
        unknown = [m for m in modes if m not in MODES]
        if unknown or not modes:
            raise ConfigError(f"ForgeryMetric modes={list(modes)} must be one or more of {MODES}")
        self.convention, self.modes, self.pooled = convention, tuple(modes), pooled
        self.threshold, self.size = threshold, size

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Measure each image; what is kept of one is a few numbers."""
        for sample in data_samples:
            truth = torch.as_tensor(_data(sample["gt_sem_seg"])).squeeze()
            probability = torch.as_tensor(_data(sample["forgery_prob"])).float().squeeze().cpu()
            truth = truth.cpu()
            if self.size is not None:
                probability = F.interpolate(probability[None, None], self.size, mode="bilinear")[0, 0]
                truth = F.interpolate(truth[None, None].float(), self.size, mode="nearest")[0, 0]
            if truth.shape != probability.shape:
                raise ConfigError(
                    f"{sample.get('img_path', 'an image')}: its mask is {tuple(truth.shape)} and the prediction "
                    f"{tuple(probability.shape)}; in the test pipeline, load annotations after resizing"
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
        """Figures of the set, from the records of all processes."""
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
        return figures


def _data(value: Any) -> Any:
    """The array of a PixelData, of its dict, or itself."""
    if isinstance(value, dict):
        return value["data"]
    return getattr(value, "data", value) if not isinstance(value, (np.ndarray, torch.Tensor)) else value
