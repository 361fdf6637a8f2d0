"""Ground-truth sampling (Yan et al., SECOND, Sensors 2018): paste objects of training scans into other scans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.augment import Item
from visionattn.heads.lidar.data.boxes import bev_overlaps, points_in_box, wrap_angle
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.io.npz import read_arrays

__all__ = ["ObjectDatabase", "ObjectPaste", "cut_objects"]

_KEYS = ("points", "offsets", "boxes", "labels", "difficulty", "classes")


class ObjectDatabase:
    """Objects with their points, at their original positions.

    Args:
        points: float32 ``[N, C]``, points of all objects, concatenated.
        offsets: int64 ``[K + 1]``; object k has the rows ``offsets[k]`` to ``offsets[k + 1]``.
        boxes: float32 ``[K, 7]``.
        labels: int64 ``[K]``, indices into ``classes``.
        difficulty: int64 ``[K]``.
        classes: class names.

    Raises:
        ValueError: if the arrays are inconsistent.
    """

    def __init__(
        self,
        points: np.ndarray,
        offsets: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        difficulty: np.ndarray,
        classes: Sequence[str],
    ) -> None:
        count = len(boxes)
        fit = points.ndim == 2 and boxes.shape == (count, 7) and len(labels) == len(difficulty) == count
        if not fit or offsets.shape != (count + 1,) or (np.diff(offsets, prepend=0) < 0).any():
            raise ValueError("`points`, `offsets`, `boxes`, `labels` and `difficulty` have inconsistent shapes")
        if offsets[-1] != len(points) or (count and not 0 <= labels.min() <= labels.max() < len(classes)):
            raise ValueError("`offsets` or `labels` refer to missing points or classes")
        self.points, self.offsets, self.boxes = points, offsets, boxes
        self.labels, self.difficulty, self.classes = labels, difficulty, tuple(classes)

    def __len__(self) -> int:
        return len(self.boxes)

    def cut(self, index: int) -> np.ndarray:
        """Points of one object, ``[n, C]``."""
        return self.points[self.offsets[index] : self.offsets[index + 1]]

    def save(self, path: str | Path) -> None:
        """Write the database as ``.npz``."""
        np.savez(path, **{key: np.asarray(getattr(self, key)) for key in _KEYS})

    @classmethod
    def load(cls, path: str | Path) -> "ObjectDatabase":
        """Read a file written by `save`.

        Raises:
            DataError: if the file is missing or malformed.
        """
        try:
            content: dict[str, Any] = dict(zip(_KEYS, read_arrays(path, _KEYS), strict=True))
            if any(content[key].dtype.kind not in "fiu" for key in _KEYS[:-1]) or content["labels"].dtype.kind == "f":
                raise ValueError("points, boxes and labels must be numeric arrays")
            content["classes"] = [str(name) for name in content["classes"]]
            return cls(**content)
        except (DataError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).removeprefix(f"{path}: ").split())
            raise DataError(f"{path}: is not an object database ({reason})") from error


def cut_objects(frames: PointCloudSet, least_points: int = 5) -> ObjectDatabase:
    """Extract all objects of a training set.

    Args:
        frames: dataset without a transform.
        least_points: minimum number of points; objects with fewer or with difficulty -1 are skipped.

    Raises:
        ValueError: if the dataset has a transform.
    """
    if frames.transform is not None:
        raise ValueError("`frames` must be a dataset without a transform")
    points: list[np.ndarray] = [np.zeros((0, frames.columns), np.float32)]
    rows: list[tuple[np.ndarray, int, int]] = []
    for index in range(len(frames)):
        item = frames.load(index)
        for box, label, level in zip(item["boxes"], item["labels"], item["difficulty"], strict=True):
            inside = points_in_box(item["points"], box)
            if len(inside) >= least_points and level >= 0:
                points.append(item["points"][inside])
                rows.append((box, int(label), int(level)))
    return ObjectDatabase(
        np.concatenate(points),
        np.concatenate([[0], np.cumsum([len(p) for p in points[1:]], dtype=np.int64)]).astype(np.int64),
        np.array([row[0] for row in rows], np.float32).reshape(-1, 7),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        frames.classes,
    )


class ObjectPaste:
    """Paste objects of a database into a scan at positions where they do not overlap other objects.

    Objects keep their distance and orientation relative to the sensor, so their point density stays realistic. Points
    of the scan inside a pasted box are removed.

    Args:
        database: the objects. Its classes are matched by name with ``classes`` of the items, if these have them.
        up_to: for each class, the number of objects in a scan after pasting.
        turn: place objects at a random azimuth; not suitable for scans labeled only in a camera's view.
        to_ground: move objects vertically onto the lowest nearby points, if these are within 1 m of the object's
            bottom.
        probability: probability of pasting into a scan.

    Raises:
        ValueError: if a class is not in the database, or a number is out of range.
    """

    def __init__(
        self,
        database: ObjectDatabase,
        up_to: Mapping[str, int],
        turn: bool = False,
        to_ground: bool = True,
        probability: float = 1.0,
    ) -> None:
        unknown = [name for name in up_to if name not in database.classes]
        if unknown:
            raise ValueError(
                f"`up_to` must have classes of the database ({', '.join(database.classes)}), got {unknown[0]!r}"
            )
        if any(count < 0 for count in up_to.values()):
            raise ValueError(f"`up_to` must have numbers of at least 0, got {dict(up_to)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1], got {probability}")
        self.database, self.turn, self.to_ground, self.probability = database, turn, to_ground, probability
        self.up_to = {database.classes.index(name): count for name, count in up_to.items()}
        self._pools = {label: np.flatnonzero(database.labels == label) for label in self.up_to}

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        if rng.random() >= self.probability:
            return item
        names = tuple(item.get("classes", self.database.classes))
        taken = np.concatenate([item["boxes"], item["ignore_boxes"]])
        chosen: list[int] = []
        new_boxes: list[np.ndarray] = []
        cuts: list[np.ndarray] = []
        for label, count in self.up_to.items():
            own = self._label_in(names, label)
            missing = min(count - int((item["labels"] == own).sum()), len(self._pools[label]))
            if missing <= 0:
                continue
            for index in rng.choice(self._pools[label], missing, replace=False):
                box, points = self._placed(int(index), item["points"], rng)
                if not bev_overlaps(box[None], taken).any():
                    taken = np.concatenate([taken, box[None]])
                    chosen.append(int(index))
                    new_boxes.append(box)
                    cuts.append(points)
        if not chosen:
            return item
        labels = np.array([self._label_in(names, label) for label in self.database.labels[chosen]], np.int64)
        return self._joined(item, chosen, labels, np.stack(new_boxes).astype(np.float32), cuts)

    def _label_in(self, names: Sequence[str], label: int) -> int:
        """Return the label that a class of the database has in a dataset with these class names."""
        name = self.database.classes[label]
        if name not in names:
            raise ValueError(f"`up_to` has the class {name!r}, which the dataset ({', '.join(names)}) lacks")
        return names.index(name)

    def _placed(self, index: int, scene: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        box, points = self.database.boxes[index].copy(), self.database.cut(index).copy()
        if self.turn:
            angle = rng.uniform(-np.pi, np.pi)
            c, s = np.cos(angle), np.sin(angle)
            turn = np.array([[c, s], [-s, c]], np.float32)
            box[:2], points[:, :2] = box[:2] @ turn, points[:, :2] @ turn
            box[6] = wrap_angle(box[6] + angle)
        if self.to_ground:
            reach = float(np.hypot(box[3], box[4])) / 2 + 1.0
            near = (np.abs(scene[:, 0] - box[0]) < reach) & (np.abs(scene[:, 1] - box[1]) < reach)
            bottom = box[2] - box[5] / 2
            heights = scene[near, 2]
            heights = heights[np.abs(heights - bottom) < 1.0]
            if len(heights) >= 10:
                shift = np.float32(np.percentile(heights, 10) - bottom)
                box[2] += shift
                points[:, 2] += shift
        return box, points

    def _joined(
        self, item: Item, chosen: list[int], labels: np.ndarray, boxes: np.ndarray, cuts: list[np.ndarray]
    ) -> Item:
        kept = np.ones(len(item["points"]), bool)
        for box in boxes:
            kept[points_in_box(item["points"], box)] = False
        changed: dict[str, Any] = dict(item)
        changed["points"] = np.concatenate([item["points"][kept], *cuts])
        changed["boxes"] = np.concatenate([item["boxes"], boxes])
        changed["labels"] = np.concatenate([item["labels"], labels])
        changed["difficulty"] = np.concatenate([item["difficulty"], self.database.difficulty[chosen]])
        if "velocity" in item:
            unknown = np.full((len(chosen), 2), np.nan, np.float32)
            changed["velocity"] = np.concatenate([item["velocity"], unknown])
        if "attributes" in item:
            changed["attributes"] = np.concatenate([item["attributes"], np.full(len(chosen), -1)])
        return changed
