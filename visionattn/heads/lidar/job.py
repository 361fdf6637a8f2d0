"""The job of object detection in point clouds."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visionattn.errors import ConfigError
from visionattn.heads.lidar.data.files import SUFFIXES
from visionattn.heads.lidar.data.folders import read_point_file
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.draw import draw_bev, shown_area
from visionattn.heads.lidar.page import cloud_html, write_cloud_html
from visionattn.heads.lidar.results import PointPrediction
from visionattn.inference.decoding import to_array
from visionattn.inference.job import Job, TrainedModel, View
from visionattn.inference.options import SCORE_THR, Options
from visionattn.io.inputs import Source, find_files

__all__ = ["JOBS", "PointJob", "PointOptions"]


@dataclass(frozen=True)
class PointOptions:
    """Options of object detection in point clouds.

    Attributes:
        html: also write a page with a 3-D view of each point cloud.
        columns: number of columns of ``.bin`` files, if neither the file size nor a JSON file in the same folder
            determines it.
        intensity_max: intensity that is scaled to 1, for point clouds without a JSON file in the same folder.

    Raises:
        ConfigError: a value is out of range.
    """

    html: bool = False
    columns: int | None = None
    intensity_max: float = 1.0

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns < 3:
            raise ConfigError(f"`columns` must be at least 3, got {self.columns}")
        if not self.intensity_max > 0:
            raise ConfigError(f"`intensity_max` must be greater than 0, got {self.intensity_max}")


class PointJob(Job):
    """3-D boxes with classes and, from heads that predict it, velocity and, for nuScenes, attributes."""

    name = "points"
    OwnOptions = PointOptions
    noun = "frame"
    records = "frames"
    thresholded = True
    max_batch_size = 4
    record_types: ClassVar[Mapping[str, Any]] = {
        "points": int,
        "dropped_points": int,
        "detections": [{"class": str, "box": [float], "score": float, "velocity": [float], "attribute": str}],
    }

    def __init__(self, model: TrainedModel, options: Options, own: PointOptions | None = None) -> None:
        super().__init__(model, options, own)
        settings = model.cfg["model"]
        self.range = _range(settings)
        self.columns = int(settings["voxel_encoder"].get("in_channels", 4))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the arguments for `PointOptions`."""
        group = parser.add_argument_group("point clouds")
        group.add_argument("--html", action="store_true", help="also write a page with a 3-D view of each point cloud")
        group.add_argument(
            "--columns", type=int, metavar="N", help="columns of .bin files, if neither size nor JSON determines them"
        )
        group.add_argument(
            "--intensity-max", type=float, default=1.0, metavar="I",
            help="intensity scaled to 1, for files without a JSON file (default: 1; nuScenes: 255)",
        )  # fmt: skip

    @classmethod
    def find(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
        """Return the point clouds in files and folders, each once."""
        return [Source(path) for path in find_files(inputs, SUFFIXES, exclude=exclude, what="point cloud")]

    def read(self, source: Any) -> dict[str, Any]:
        """Return a point cloud as an item of `visionattn.heads.lidar.data.frames.PointCloudSet`, x forward.

        Args:
            source: a path, or an array ``[N, C]``: x, y, z, intensity in [0, 1], ...; x forward, y left, z up.

        Raises:
            DataError: the file cannot be read.
        """
        if isinstance(source, (str, Path)):
            frame = read_point_file(source)
            if not Path(source).with_suffix(".json").is_file():
                frame = replace(frame, columns=self.own.columns, intensity_scale=self.own.intensity_max)
            found = PointCloudSet([frame], self.classes, self.columns, x_forward=True).load(0)
            every = tuple(dict.fromkeys(frame.classes)) or self.classes
            known = PointCloudSet([frame], every, self.columns, x_forward=True).labels(0)
            return {**found, "truth": known["boxes"], "truth_classes": tuple(every[k] for k in known["labels"])}
        points = np.asarray(source, np.float32)
        if points.ndim != 2 or points.shape[1] < self.columns:
            raise ValueError(f"points must be [N, {self.columns} or more], got shape {list(points.shape)}")
        finite = np.isfinite(points).all(1)
        none = np.zeros((0, 7), np.float32)
        return {
            "points": points[finite, : self.columns], "boxes": none, "labels": np.zeros(0, np.int64),
            "difficulty": np.zeros(0, np.int64), "ignore_boxes": none, "ignore_labels": np.zeros(0, np.int64),
            "labelled_region": None, "frame": "", "path": "", "dropped": int((~finite).sum()),
            "truth": none, "truth_classes": (),
        }  # fmt: skip

    def sample(self, item: dict[str, Any], view: View = View()) -> dict[str, Any]:  # noqa: B008  View is immutable
        """Return a copy of the item: transforms of the pipeline change it."""
        return dict(item)

    def decode(self, output: Any, item: dict[str, Any]) -> PointPrediction:
        """Return the boxes above the score threshold."""
        found = output.pred_instances
        scores = to_array(found.scores, np.float32)
        kept = scores >= self.class_thresholds[to_array(found.labels, np.int64)]
        boxes = to_array(found.boxes, np.float32)[kept]
        return PointPrediction(
            item["points"],
            self.classes,
            boxes,
            scores[kept],
            to_array(found.labels, np.int64)[kept],
            to_array(found.velocity, np.float32)[kept] if "velocity" in found else None,
            item["truth"],
            item["truth_classes"],
            item["frame"],
            Path(item["path"]) if item["path"] else None,
            dropped=item["dropped"],
            area=self._area(item["points"], boxes),
        )

    def _area(self, points: np.ndarray, boxes: np.ndarray) -> tuple[float, float, float, float] | None:
        """Return the part of the model's point cloud range that contains points or boxes."""
        x0, y0, _, x1, y1, _ = self.range
        seen = shown_area(points, boxes)
        area = max(x0, seen[0]), max(y0, seen[1]), min(x1, seen[2]), min(y1, seen[3])
        return area if area[0] < area[2] and area[1] < area[3] else None

    def record(self, prediction: PointPrediction, index: int) -> dict[str, Any]:
        """Return the boxes, and the number of points."""
        return {
            "points": len(prediction.points),
            "dropped_points": prediction.dropped,
            "detections": prediction.to_records(),
        }

    def view(self, prediction: PointPrediction) -> str:
        """Return the page with the 3-D view, which at first shows boxes with a score of at least `SCORE_THR`."""
        return cloud_html(prediction, score=max(SCORE_THR, float(self.class_thresholds.min())))

    def write(self, out: Path, name: str, prediction: PointPrediction) -> dict[str, Any]:
        """Write the page with the 3-D view, if the option ``html`` is set."""
        if not self.own.html:
            return {}
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_cloud_html(out / f"{name}.html", prediction, score=float(self.class_thresholds.min()))
        return {"page": f"{name}.html"}

    def describe_model(self) -> dict[str, Any]:
        """Return the class names and a description of the box format."""
        return super().describe_model() | {
            "boxes": "x, y, z of the center, length, width, height in meters, yaw in radians counter-clockwise from +x"
        }

    @classmethod
    def draw_samples(cls, config: Any, split: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the bird's-eye view of training frames after all transforms."""
        from visionattn.heads.lidar.mmlab.samples import read_point_samples

        x0, y0, _, x1, y1, _ = _range(config["model"])
        for sample in read_point_samples(config, split, number):
            scores = np.full(len(sample["boxes"]), np.nan, np.float32)
            shown = PointPrediction(sample["points"], sample["classes"], sample["boxes"], scores, sample["labels"])
            yield sample["name"], draw_bev(shown, (x0, y0, x1, y1))


def _range(model: Any) -> tuple[float, ...]:
    """Return the point cloud range of a model: minimum x, y, z and maximum x, y, z in meters."""
    return tuple(float(value) for value in model["point_cloud_range"])


JOBS = (PointJob,)
