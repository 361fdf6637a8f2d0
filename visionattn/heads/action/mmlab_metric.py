"""Action recognition metrics of `visionattn.heads.action.metrics` for mmengine's evaluator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.heads.action.metrics import class_recalls, mean_class_accuracy, top_accuracy

__all__ = ["ActionMetric"]


@METRICS.register_module()
class ActionMetric(BaseMetric):
    """``Top1``, ``Top5`` (with more than 5 classes) and ``MeanClass``, the mean class recall, in percent.

    Videos that distributed samplers repeat to fill the last batch are counted once.

    Args:
        per_class: also report the recall of each class, as ``recall_<name>``.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
    """

    def __init__(self, per_class: bool = False, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device, prefix)
        self.per_class = per_class

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collect the scores and label of each video of a batch."""
        for sample in data_samples:
            key = sample.get("sample_idx", sample.get("video_path"))
            self.results.append((key, np.asarray(sample["pred_scores"], np.float64), int(sample["gt_label"])))

    def compute_metrics(self, results: list[tuple[Any, np.ndarray, int]]) -> dict[str, float]:
        """Compute the metrics listed in the class docstring."""
        once: dict[Any, tuple[np.ndarray, int]] = {}
        for number, (key, scores, label) in enumerate(results):
            once.setdefault(("number", number) if key is None else key, (scores, label))
        scores, labels = np.stack([s for s, _ in once.values()]), np.array([label for _, label in once.values()])
        figures = {"Top1": top_accuracy(scores, labels)}
        if scores.shape[1] > 5:
            figures["Top5"] = top_accuracy(scores, labels, 5)
        figures["MeanClass"] = mean_class_accuracy(scores, labels)
        if self.per_class:
            names = (self.dataset_meta or {}).get("classes") or range(scores.shape[1])
            recalls = zip(names, class_recalls(scores, labels), strict=True)
            figures |= {f"recall_{name}": float(value) for name, value in recalls if not np.isnan(value)}
        return figures
