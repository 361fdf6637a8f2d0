"""LiDAR detection metrics for mmengine's evaluator, in one process or several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError
from visionattn.heads.lidar.data.nuscenes_results import result_rows, write_results
from visionattn.heads.lidar.metrics_kitti import LEVELS, BevPrecision
from visionattn.heads.lidar.metrics_nuscenes import DISTANCES, DistancePrecision
from visionattn.heads.lidar.metrics_waymo import WaymoPrecision

__all__ = ["BEVDistanceMetric", "BEVMetric", "WaymoMetric"]


class _LidarMetric(BaseMetric):
    """Create the measure once the dataset's classes are known, and collect one record per frame.

    Attributes:
        class_table: after the evaluation, the table of the classes by its title, for `visionattn.engine.train.testing`.
    """

    title = ""

    def __init__(self, collect_device: str, prefix: str | None, **options: Any) -> None:
        super().__init__(collect_device, prefix)
        self.options = options
        self.class_table: dict[str, dict[str, dict[str, float]]] = {}

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
            self.results.append(self.record(dict(sample["pred_instances"]), truth))

    def record(self, found: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
        """Evaluate one frame."""
        if "velocity" in found:
            found = {**found, "boxes": torch.cat([found["boxes"], found["velocity"]], 1)}
        return self.measure.measure(found, truth)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames."""
        figures = self.measure.summarize(results)
        if self.title:
            self.class_table = {self.title: self.measure.table(figures)}
        return figures


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
        super().__init__(
            collect_device, prefix,
            iou=iou, recall_points=recall_points, levels=levels, dont_care=dont_care, least_height=least_height,
        )  # fmt: skip

    def make(self, classes: Sequence[str]) -> BevPrecision:
        """Create the measure for these classes."""
        return BevPrecision(classes, **self.options)


@METRICS.register_module()
class BEVDistanceMetric(_LidarMetric):
    """nuScenes average precision and NDS; see `visionattn.heads.lidar.metrics_nuscenes.DistancePrecision`.

    Args:
        distances, ranges, all_classes: see `DistancePrecision`.
        results_file: also write the detections to this file in the submission format of the nuScenes detection task.
            ``visionattn test`` writes a relative path to its output folder. None writes no file.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
    """

    title = "nuScenes, AP in percent"

    def __init__(
        self,
        distances: Sequence[float] = DISTANCES,
        ranges: Mapping[str, float] | None = None,
        all_classes: bool = False,
        results_file: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, distances=distances, ranges=ranges, all_classes=all_classes)
        self.results_file = results_file
        self.output_folder = Path()
        self.files: list[Path] = []

    def make(self, classes: Sequence[str]) -> DistancePrecision:
        """Create the measure for these classes."""
        return DistancePrecision(classes, **self.options)

    def record(self, found: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
        """Evaluate one frame, and add its rows in the results file."""
        record = super().record(found, truth)
        if self.results_file is None:
            return record
        if truth.get("to_global") is None:
            frame = truth["frame"]
            raise ConfigError(f"BEVDistanceMetric: `results_file` requires frames with a pose, but {frame} has none")
        values = {name: value.detach().cpu().numpy() for name, value in found.items()}
        token, classes = str(truth["frame"]), self.measure.classes
        rows = result_rows(token, classes, to_global=truth["to_global"], **values)
        return {**record, "results": (token, rows)}

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames, and write the results file."""
        if self.results_file is not None:
            path = self.output_folder / self.results_file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_results(path, dict(record["results"] for record in results))
            self.files = [path]
        return super().compute_metrics(results)


@METRICS.register_module()
class WaymoMetric(_LidarMetric):
    """Waymo AP and APH of both levels; see `visionattn.heads.lidar.metrics_waymo.WaymoPrecision`.

    Args:
        iou: see `WaymoPrecision`.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
    """

    title = "Waymo, in percent"

    def __init__(
        self, iou: Mapping[str, float] | float | None = None, collect_device: str = "cpu", prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix, iou=iou)

    def make(self, classes: Sequence[str]) -> WaymoPrecision:
        """Create the measure for these classes."""
        return WaymoPrecision(classes, **self.options)
