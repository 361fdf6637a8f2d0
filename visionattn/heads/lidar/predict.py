"""Run a trained detector over point clouds and write what it finds: pictures from above, JSON, pages to look around in.

In the results' folder:

- ``<name>.png``: the points and boxes of a frame from above.
- ``<name>.html``, if asked for: the same from all sides.
- ``predictions.json``: one record per input, under "frames", with its boxes or, where it could not be read, the reason.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visionattn import __version__
from visionattn.errors import ConfigError, DataError
from visionattn.heads.lidar.data.files import SUFFIXES
from visionattn.heads.lidar.data.folders import read_point_file
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.results import PointPrediction
from visionattn.inference.predictor import pick_device
from visionattn.inference.writing import JsonRecords, output_names, write_png
from visionattn.io.inputs import Source

__all__ = ["PointOptions", "PointPredictor", "PointSummary", "find_clouds", "predict_clouds"]

PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class PointOptions:
    """How a `PointPredictor` goes about it.

    Attributes:
        score_thr: boxes with a lower score are left out.
        batch_size: frames that go through the model together.
        columns: of ``.bin`` files without a JSON file beside them, where their size does not tell.
        intensity_max: value of such files' intensity that becomes 1.

    Raises:
        ConfigError: a value is out of range.
    """

    score_thr: float = 0.3
    batch_size: int = 1
    columns: int | None = None
    intensity_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.score_thr <= 1:  # NaN fails too
            raise ConfigError(f"--score-thr must be in 0..1, got {self.score_thr}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.columns is not None and self.columns < 3:
            raise ConfigError(f"--columns must be at least 3, got {self.columns}")
        if not self.intensity_max > 0:
            raise ConfigError(f"--intensity-max must be above 0, got {self.intensity_max}")


class PointPredictor:
    """A detector of point clouds, ready to predict.

    Args:
        config: config file of the model, or a loaded config.
        checkpoint: its weights.
        device: where to run; the first GPU if there is one, else the CPU.
        **options: the fields of `PointOptions`.

    Raises:
        ConfigError: the config, the device or an option is wrong.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """

    task = "points"

    def __init__(self, config: Any, checkpoint: str | Path, device: Any = None, **options: Any) -> None:
        from visionattn.engine.model import load_model
        from visionattn.heads.lidar.mmlab.predict import model_range

        self.options = PointOptions(**options)
        self.loaded = load_model(config, checkpoint, device=pick_device(device))
        self.classes = tuple(self.loaded.classes)
        self.range = model_range(self.loaded.cfg)
        self.columns = int(self.loaded.cfg.model.voxel_encoder.get("in_channels", 4))

    def __call__(self, inputs: Any) -> PointPrediction | list[PointPrediction]:
        """Predict on one point cloud, or on a list of them.

        Args:
            inputs: a path, an array ``[N, C]`` (x, y, z, intensity in 0..1, ...; x forward, y left, z up), or a list
                or tuple of such.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(inputs, (list, tuple)):
            return self.predict([self.read(item) for item in inputs])
        return self.predict([self.read(inputs)])[0]

    def read(self, item: Any) -> dict[str, Any]:
        """A path or an array as an item of `visionattn.heads.lidar.data.frames.PointCloudSet`, x forward."""
        if isinstance(item, (str, Path)):
            frame = read_point_file(item)
            if not Path(item).with_suffix(".json").is_file():
                frame = replace(frame, columns=self.options.columns, intensity_scale=self.options.intensity_max)
            found = PointCloudSet([frame], self.classes, self.columns, x_forward=True).load(0)
            every = tuple(dict.fromkeys(frame.classes)) or self.classes
            known = PointCloudSet([frame], every, self.columns, x_forward=True).labels(0)
            return {**found, "truth": known["boxes"], "truth_classes": tuple(every[k] for k in known["labels"])}
        points = np.asarray(item, np.float32)
        if points.ndim != 2 or points.shape[1] < self.columns:
            raise ValueError(f"points must be [N, {self.columns} or more], got shape {points.shape}")
        finite = np.isfinite(points).all(1)
        none = np.zeros((0, 7), np.float32)
        return {
            "points": points[finite, : self.columns], "boxes": none, "labels": np.zeros(0, np.int64),
            "difficulty": np.zeros(0, np.int64), "ignore_boxes": none, "ignore_labels": np.zeros(0, np.int64),
            "labelled_region": None, "frame": "", "path": "", "dropped": int((~finite).sum()),
        }  # fmt: skip

    def predict(self, items: Sequence[dict[str, Any]]) -> list[PointPrediction]:
        """Predict on items of `read`."""
        from visionattn.heads.lidar.mmlab.predict import predict_points

        predictions = []
        for start in range(0, len(items), self.options.batch_size):
            batch = items[start : start + self.options.batch_size]
            for item, found in zip(batch, predict_points(self.loaded, batch), strict=True):
                kept = found["scores"] >= self.options.score_thr
                velocity = found["velocity"]
                predictions.append(
                    PointPrediction(
                        item["points"],
                        self.classes,
                        found["boxes"][kept],
                        found["scores"][kept],
                        found["labels"][kept],
                        None if velocity is None else velocity[kept],
                        item.get("truth", np.zeros((0, 7), np.float32)),
                        item.get("truth_classes", ()),
                        item["frame"],
                        Path(item["path"]) if item["path"] else None,
                        found["seconds"],
                        item["dropped"],
                    )
                )
        return predictions


@dataclass
class PointSummary:
    """What came of a run over point clouds.

    Attributes:
        frames: how many were predicted on.
        failed: (file, reason) of each input that could not be read.
        found: number of boxes by class.
        seconds: time in the model.
    """

    frames: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    found: Counter = field(default_factory=Counter)
    seconds: float = 0.0


def find_clouds(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Path]:
    """The point clouds of files and folders (searched to any depth), each once, in the order given.

    Args:
        inputs: paths; a file that is named is taken whatever it is called.
        exclude: a folder whose contents do not count.

    Raises:
        DataError: a path does not exist, or a folder holds no point cloud.
    """
    found: dict[str, Path] = {}
    excluded = None if exclude is None else Path(exclude).resolve()
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"{item}: there is no such file or folder")
        files = [item]
        if item.is_dir():
            files = [
                Path(folder, name)
                for folder, folders, names in os.walk(item)
                if folders.sort() is None
                for name in sorted(names)
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
            ]
            files = [f for f in files if excluded is None or not Path(os.path.realpath(f)).is_relative_to(excluded)]
            if not files:
                raise DataError(f"{item}: the folder holds no point cloud ({', '.join(SUFFIXES)})")
        for path in files:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def predict_clouds(
    predictor: PointPredictor,
    paths: Sequence[Path],
    out: Path,
    about: dict[str, Any],
    html: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
    on_error: Callable[[str], None] = lambda message: None,
) -> PointSummary:
    """Predict on every point cloud and write the results; one that cannot be read is reported and passed over.

    Args:
        predictor: the model.
        paths: of `find_clouds`.
        out: folder for the results.
        about: what the predictions file says of the model, such as its config and checkpoint.
        html: also write a page for each frame.
        on_progress: called with the number of frames done since the last call.
        on_error: called with one line for each input that could not be read.

    Raises:
        DataError: a result cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: the folder cannot be made ({error.strerror})") from error
    names, summary = output_names([Source(path) for path in paths]), PointSummary()
    head = {
        "visionattn": __version__,
        "model": about,
        "settings": asdict(predictor.options),
        "classes": list(predictor.classes),
        "boxes": "x, y, z of the centre, length, width, height in metres, heading in radians counter-clockwise from +x",
    }
    with JsonRecords(out / PREDICTIONS_FILE, head, "frames") as records:
        for record in _records(predictor, paths, names, out, html, summary, on_error):
            records.add(record)
            on_progress(1)
    return summary


def _records(
    predictor: PointPredictor,
    paths: Sequence[Path],
    names: Sequence[str],
    out: Path,
    html: bool,
    summary: PointSummary,
    on_error: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    size = predictor.options.batch_size
    for start in range(0, len(paths), size):
        batch: list[dict[str, Any] | DataError] = []
        for path in paths[start : start + size]:
            try:
                batch.append(predictor.read(path))
            except DataError as error:
                batch.append(error)
        found = iter(predictor.predict([item for item in batch if not isinstance(item, DataError)]))
        for offset, item in enumerate(batch):
            path, name = paths[start + offset], names[start + offset]
            record: dict[str, Any] = {"frame_id": start + offset, "file": str(path)}
            if isinstance(item, DataError):
                summary.failed.append((str(path), str(item)))
                on_error(str(item))
                yield record | {"error": str(item)}
                continue
            prediction = next(found)
            summary.frames += 1
            summary.seconds += prediction.seconds
            summary.found.update(prediction.names)
            yield record | _written(prediction, predictor, out, name, html)


def _written(
    prediction: PointPrediction, predictor: PointPredictor, out: Path, name: str, html: bool
) -> dict[str, Any]:
    """Write the picture and the page of a frame; what its record says."""
    from visionattn.heads.lidar.draw import draw_bev, shown_area

    x0, y0, _, x1, y1, _ = predictor.range
    seen = shown_area(prediction.points, prediction.boxes)
    area = max(x0, seen[0]), max(y0, seen[1]), min(x1, seen[2]), min(y1, seen[3])
    write_png(out / f"{name}.png", draw_bev(prediction, area if area[0] < area[2] and area[1] < area[3] else None))
    record = {
        "seconds": round(prediction.seconds, 5),
        "points": len(prediction.points),
        "dropped_points": prediction.dropped,
        "overlay": f"{name}.png",
        "detections": prediction.to_records(),
    }
    if html:
        from visionattn.heads.lidar.page import write_cloud_html

        write_cloud_html(out / f"{name}.html", prediction, score=predictor.options.score_thr)
        record["page"] = f"{name}.html"
    return record
