"""The nuScenes dataset (Caesar et al., CVPR 2020), read from its JSON tables.

Points are in ROOT/samples/LIDAR_TOP/*.pcd.bin and ROOT/sweeps/LIDAR_TOP/*.pcd.bin, tables in ROOT/v1.0-mini/*.json (or
another version). The axes of the sensor are **x right, y forward**;
`visionattn.heads.lidar.data.frames.PointCloudSet` rotates frames with ``x_forward=True``. Intensity is in [0, 255] in
the files and in [0, 1] in items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.frames import PointCloudFrame
from visionattn.heads.lidar.data.nuscenes_results import ATTRIBUTES
from visionattn.heads.lidar.data.sweeps import Sweep, SweepReader, rotation_matrix, transform
from visionattn.io.json import read_json
from visionattn.io.names import place

__all__ = ["CATEGORIES", "CLASSES", "MINI_VAL", "read_nuscenes"]

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
"""The classes of the detection task."""

CATEGORIES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""Maps annotation categories to classes; other categories are not part of the detection task."""

MINI_VAL = ("scene-0103", "scene-0916")
"""The validation scenes of v1.0-mini."""

_BIKE_RACK = "static_object.bicycle_rack"
_CHANNEL = "LIDAR_TOP"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)  # raised by malformed content
_MAX_INTERVAL = 1.5  # maximum seconds between two annotations for a velocity estimate


def read_nuscenes(
    root: str | Path,
    version: str | None = None,
    scenes: Sequence[str] | str | Path | None = None,
    sweeps: int = 10,
) -> list[PointCloudFrame]:
    """Read the annotated frames, in the order of the tables.

    Point columns are x, y, z, intensity and age in seconds. Boxes without LiDAR or radar points become ignored boxes.

    Args:
        root: root folder of the dataset.
        version: folder of the tables, such as ``"v1.0-trainval"``. Defaults to the only one present.
        scenes: scene names, or a file with one name per line; None for all scenes. The official splits are listed in
            the nuScenes development kit; see also `MINI_VAL`.
        sweeps: number of sweeps per frame, including the annotated one.

    Raises:
        ValueError: if ``sweeps`` is less than 1.
        DataError: if a table is missing or malformed, or refers to a missing row.
    """
    if sweeps < 1:
        raise ValueError(f"`sweeps` must be at least 1, got {sweeps}")
    tables = _Tables(Path(root), version)
    frames = []
    try:
        wanted = _wanted(scenes, tables)
        for sample in tables.read("sample").values():
            if wanted is None or sample["scene_token"] in wanted:
                frames.append(tables.frame(sample, sweeps))
    except _MALFORMED as error:
        raise DataError(f"{tables.folder}: the tables are malformed ({type(error).__name__}: {error})") from error
    if not frames:
        raise DataError(f"{tables.folder}: has no frame of `scenes` {scenes}")
    return frames


class _Tables:
    """The tables, indexed by token, and lookups that join several of them."""

    def __init__(self, root: Path, version: str | None) -> None:
        if version is None:
            found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
            if len(found) != 1:
                there = ", ".join(found) or "none"
                raise DataError(f"{root}: `version` is needed unless there is exactly one folder v1.0-*, got {there}")
            version = found[0]
        self.root, self.folder = root, root / version
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: table folder not found")
        self._known: dict[str, dict[str, dict[str, Any]]] = {}
        try:
            self._join()
        except _MALFORMED as error:
            raise DataError(f"{self.folder}: the tables are malformed ({type(error).__name__}: {error})") from error

    def _join(self) -> None:
        channels = {token: sensor["channel"] for token, sensor in self.read("sensor").items()}
        lidars = {t for t, c in self.read("calibrated_sensor").items() if channels.get(c["sensor_token"]) == _CHANNEL}
        data = [d for d in self.read("sample_data").values() if d["calibrated_sensor_token"] in lidars]
        self.data = {d["token"]: d for d in data}
        self.key = {d["sample_token"]: d for d in data if d["is_key_frame"]}
        self.boxes: dict[str, list[dict[str, Any]]] = {}
        for annotation in self.read("sample_annotation").values():
            self.boxes.setdefault(annotation["sample_token"], []).append(annotation)

    def read(self, table: str) -> dict[str, dict[str, Any]]:
        """Rows of a table, by token."""
        if table not in self._known:
            path = self.folder / f"{table}.json"
            try:
                rows = read_json(path)
                self._known[table] = {row["token"]: row for row in rows}
            except (OSError, ValueError, TypeError, KeyError) as error:
                text = " ".join(str(error).split())
                raise DataError(f"{path}: is not a nuScenes table ({type(error).__name__}: {text})") from error
        return self._known[table]

    def row(self, table: str, token: str) -> dict[str, Any]:
        """The row of a table with the given token."""
        try:
            return self.read(table)[token]
        except KeyError:
            raise DataError(
                f"{self.folder / table}.json: has no token {token!r}, to which another table refers"
            ) from None

    def to_global(self, data: dict[str, Any]) -> np.ndarray:
        """Transform ``[4, 4]`` from the sensor, at the time of a measurement, to the global frame."""
        pose = self.row("ego_pose", data["ego_pose_token"])
        mounted = self.row("calibrated_sensor", data["calibrated_sensor_token"])
        return transform(pose["rotation"], pose["translation"]) @ transform(mounted["rotation"], mounted["translation"])

    def frame(self, sample: dict[str, Any], sweeps: int) -> PointCloudFrame:
        """The frame of an annotated sample."""
        data = self.key.get(sample["token"])
        if data is None:
            raise DataError(f"{self.folder / 'sample_data'}.json: has no {_CHANNEL} for the sample {sample['token']!r}")
        to_global = self.to_global(data)
        from_global = np.linalg.inv(to_global)
        mounted = self.row("calibrated_sensor", data["calibrated_sensor_token"])
        to_ego = transform(mounted["rotation"], mounted["translation"])
        where = f"{self.folder / 'sample_data'}.json"
        path = place(data["filename"], self.root, where)
        earlier, at = [], data
        while len(earlier) < sweeps - 1 and at["prev"] in self.data:
            at = self.data[at["prev"]]
            age = (data["timestamp"] - at["timestamp"]) / 1e6
            earlier.append(Sweep(place(at["filename"], self.root, where), from_global @ self.to_global(at), age))
        rows, classes, velocities, seen, attributes, racks = [], [], [], [], [], []
        for annotation in self.boxes.get(sample["token"], []):
            instance = self.row("instance", annotation["instance_token"])
            category = self.row("category", instance["category_token"])["name"]
            name = CATEGORIES.get(category)
            if category == _BIKE_RACK:
                racks.append(_box(annotation, from_global))
            if name is not None:
                rows.append(_box(annotation, from_global))
                classes.append(name)
                velocities.append((from_global[:3, :3] @ self.velocity(annotation))[:2])
                attributes.append(self.attribute(annotation))
                seen.append(annotation.get("num_lidar_pts", 1) + annotation.get("num_radar_pts", 0) > 0)
        kept = np.array(seen, bool)
        boxes = np.array(rows, np.float32).reshape(-1, 7)
        return PointCloudFrame(
            sample["token"],
            path,
            boxes[kept],
            tuple(n for n, keep in zip(classes, kept, strict=True) if keep),
            ignore_boxes=boxes[~kept],
            ignore_classes=tuple(n for n, keep in zip(classes, kept, strict=True) if not keep),
            velocity=np.array(velocities, np.float32).reshape(-1, 2)[kept],
            attributes=np.array(attributes, np.int64)[kept],
            bike_racks=np.array(racks, np.float32).reshape(-1, 7),
            to_global=to_global,
            ego=np.linalg.inv(to_ego)[:3, 3],
            columns=5,
            intensity_scale=255.0,
            x_right=True,
            read=SweepReader(path, tuple(earlier)),
        )

    def attribute(self, annotation: dict[str, Any]) -> int:
        """Index of an annotation's attribute in `ATTRIBUTES`, -1 if it has none of them."""
        tokens = annotation.get("attribute_tokens") or ()
        names = [self.row("attribute", token)["name"] for token in tokens]
        return ATTRIBUTES.index(names[0]) if len(names) == 1 and names[0] in ATTRIBUTES else -1

    def velocity(self, annotation: dict[str, Any]) -> np.ndarray:
        """Velocity ``[3]`` in meters per second in the global frame, from the previous and next annotations.

        NaN if they are too far apart in time.
        """
        table = self.read("sample_annotation")
        first = table.get(annotation["prev"], annotation)
        last = table.get(annotation["next"], annotation)
        times = [self.row("sample", a["sample_token"])["timestamp"] / 1e6 for a in (first, last)]
        max_interval = _MAX_INTERVAL * (2 if first is not annotation and last is not annotation else 1)
        if not 0 < times[1] - times[0] <= max_interval:
            return np.full(3, np.nan)
        return (np.array(last["translation"]) - np.array(first["translation"])) / (times[1] - times[0])


def _box(annotation: dict[str, Any], from_global: np.ndarray) -> list[float]:
    width, length, height = annotation["size"]
    center = from_global @ [*annotation["translation"], 1]
    ahead = from_global[:3, :3] @ rotation_matrix(annotation["rotation"])[:, 0]
    return [*center[:3], length, width, height, float(np.arctan2(ahead[1], ahead[0]))]


def _wanted(scenes: Sequence[str] | str | Path | None, tables: _Tables) -> set[str] | None:
    if scenes is None:
        return None
    if isinstance(scenes, (str, Path)):
        try:
            scenes = Path(scenes).read_text(encoding="utf-8").split()
        except OSError as error:
            raise DataError(f"{scenes}: cannot be read as a list of scenes ({error.strerror})") from error
    known = {scene["name"]: token for token, scene in tables.read("scene").items()}
    unknown = [name for name in scenes if name not in known]
    if unknown and len(unknown) == len(scenes):
        raise DataError(
            f"{tables.folder / 'scene'}.json: has none of the {len(unknown)} `scenes`, such as {unknown[0]!r}"
        )
    return {known[name] for name in scenes if name in known}
