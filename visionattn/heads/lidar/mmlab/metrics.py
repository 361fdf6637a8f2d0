"""LiDAR detection metrics for mmengine's evaluator, in one process or several."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError
from visionattn.heads.lidar.metrics_kitti import LEVELS, BevPrecision
from visionattn.heads.lidar.metrics_nuscenes import DISTANCES, DistancePrecision

__all__ = ["BEVDistanceMetric", "BEVMetric"]


class _LidarMetric(BaseMetric):
    """Create the measure once the dataset's classes are known, and collect one record per frame."""

    def make(self, classes: Sequence[str]) -> Any:
        """Create the measure for these classes."""
        raise NotImplementedError

    @property
    def measure(self) -> Any:
        """The measure for the dataset's classes."""
        classes = tuple((self.dataset_meta or {}).get("classes") or ())
        if getattr(self, "_built", (None,))[0] != classes:
            try:
                self._built = (classes, self.make(classes))
            except ValueError as error:
                raise ConfigError(f"{type(self).__name__}: {error}") from error
        return self._built[1]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Evaluate each frame of a batch."""
        for sample in data_samples:
            truth = {**sample["gt_instances"], **{k: v for k, v in sample.items() if k not in _INSTANCES}}
            found = dict(sample["pred_instances"])
            if "velocity" in found:
                found["boxes"] = torch.cat([found["boxes"], found["velocity"]], 1)
            self.results.append(self.measure.measure(found, truth))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames."""
        return self.measure.summarize(results)


_INSTANCES = ("gt_instances", "pred_instances")


@METRICS.register_module()
class BEVMetric(_LidarMetric):
    """KITTI average precision; see `visionattn.heads.lidar.metrics_kitti.BevPrecision`.

    Args:
        iou, recall_points, levels, dont_care, least_height: see `BevPrecision`.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
    """

    def __init__(
        self,
        iou: Mapping[str, float] | float | None = None,
        recall_points: int = 40,
        levels: Sequence[str] = LEVELS,
        dont_care: bool = False,
        least_height: Sequence[float] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.options = dict(
            iou=iou, recall_points=recall_points, levels=levels, dont_care=dont_care, least_height=least_height
        )

    def make(self, classes: Sequence[str]) -> BevPrecision:
        """Create the measure for these classes."""
        return BevPrecision(classes, **self.options)


@METRICS.register_module()
class BEVDistanceMetric(_LidarMetric):
    """nuScenes average precision; see `visionattn.heads.lidar.metrics_nuscenes.DistancePrecision`.

    Args:
        distances, ranges: see `DistancePrecision`.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
    """

    def __init__(
        self,
        distances: Sequence[float] = DISTANCES,
        ranges: Mapping[str, float] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.options = dict(distances=distances, ranges=ranges)

    def make(self, classes: Sequence[str]) -> DistancePrecision:
        """Create the measure for these classes."""
        return DistancePrecision(classes, **self.options)
