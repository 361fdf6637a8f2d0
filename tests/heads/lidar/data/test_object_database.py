"""Objects cut out of scans and put into others."""

import json

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.boxes import bev_overlaps, count_points
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.folders import read_point_folder
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.data.object_database import ObjectDatabase, ObjectPaste, cut_objects

CLASSES = ("car", "person")


@pytest.fixture
def frames(tmp_path) -> PointCloudSet:
    """Three scans of a level ground with two cars and a person each, at other places in each."""
    rng = np.random.default_rng(0)
    for number in range(3):
        ground = np.column_stack([rng.uniform(-30, 30, (4000, 2)), rng.normal(-1.7, 0.02, 4000)])
        boxes, parts = [], [ground]
        for name, x in (("car", -10 + number * 8.0), ("car", 9.0 + number), ("person", 3.0)):
            size = [4.0, 1.8, 1.5] if name == "car" else [0.8, 0.6, 1.8]
            box = [x, 6.0 * number - 5, -1.7 + size[2] / 2, *size, 0.0]
            boxes.append({"class": name, "box": box})
            parts.append(np.array(box[:3]) + rng.uniform(-0.45, 0.45, (30, 3)) * size)
        points = np.concatenate(parts)
        write_points(tmp_path / f"{number}.bin", np.column_stack([points, rng.random(len(points))]))
        (tmp_path / f"{number}.json").write_text(json.dumps({"boxes": boxes, "columns": list("xyzi")}))
    return PointCloudSet(read_point_folder(tmp_path), CLASSES)


def test_cutting_and_saving(frames, tmp_path):
    database = cut_objects(frames)
    assert len(database) == 9
    assert database.classes == CLASSES
    assert np.bincount(database.labels).tolist() == [6, 3]
    for index in range(len(database)):
        inside = count_points(database.cut(index), database.boxes[index : index + 1])
        assert inside[0] == len(database.cut(index)) >= 30
    database.save(tmp_path / "objects.npz")
    again = ObjectDatabase.load(tmp_path / "objects.npz")
    for key in ("points", "offsets", "boxes", "labels", "difficulty"):
        np.testing.assert_array_equal(getattr(again, key), getattr(database, key))
    assert again.classes == CLASSES
    assert len(cut_objects(frames, least_points=10**6)) == 0
    with pytest.raises(DataError, match="not an object database"):
        ObjectDatabase.load(tmp_path / "0.bin")
    with pytest.raises(ValueError, match="inconsistent shapes"):
        ObjectDatabase(
            database.points, database.offsets[:-1], database.boxes, database.labels, database.labels, CLASSES
        )


@pytest.mark.parametrize("turn", [False, True])
def test_pasted_objects_overlap_nothing(frames, turn):
    database = cut_objects(frames)
    paste = ObjectPaste(database, {"car": 6, "person": 3}, turn=turn)
    rng = np.random.default_rng(1)
    added = 0
    for _ in range(20):
        item = frames.load(1)
        old_counts = count_points(item["points"], item["boxes"])
        changed = paste(item, rng)
        count = len(item["boxes"])
        added += len(changed["boxes"]) - count
        assert len(changed["boxes"]) == len(changed["labels"]) == len(changed["difficulty"])
        assert (changed["labels"] == 0).sum() <= 6
        assert (changed["labels"] == 1).sum() <= 3
        overlaps = bev_overlaps(changed["boxes"], changed["boxes"])
        np.fill_diagonal(overlaps, False)
        assert not overlaps.any()
        np.testing.assert_array_equal(changed["boxes"][:count], item["boxes"])
        new_counts = count_points(changed["points"], changed["boxes"])
        np.testing.assert_array_equal(new_counts[:count], old_counts)
        assert (new_counts[count:] >= 30).all()
        distances = np.hypot(*changed["boxes"][count:, :2].T)
        known = np.hypot(*database.boxes[:, :2].T)
        assert (np.abs(distances[:, None] - known).min(1) < 1e-4).all()
    assert added > 20


def test_objects_are_set_on_the_ground(frames):
    database = cut_objects(frames)
    item = frames.load(0)
    item["points"][:, 2] += 0.4  # another sensor height
    item["boxes"] = item["boxes"][:0]
    item["labels"] = item["labels"][:0]
    item["difficulty"] = item["difficulty"][:0]
    for to_ground, bottom in ((True, -1.3), (False, -1.7)):
        changed = ObjectPaste(database, {"car": 3}, to_ground=to_ground)(item, np.random.default_rng(0))
        assert len(changed["boxes"]) > 0
        np.testing.assert_allclose(changed["boxes"][:, 2] - changed["boxes"][:, 5] / 2, bottom, atol=0.08)


def test_what_was_in_the_place_goes(frames):
    database = cut_objects(frames)
    item = frames.load(0)
    changed = ObjectPaste(database, {"car": 5}, to_ground=False)(item, np.random.default_rng(0))
    new = changed["boxes"][len(item["boxes"]) :]
    assert len(new) > 0
    pasted = sum(
        len(database.cut(i)) for i in range(len(database)) if any(np.allclose(database.boxes[i], b) for b in new)
    )
    assert count_points(changed["points"], new).sum() == pasted
    assert len(changed["points"]) == len(item["points"]) - count_points(item["points"], new).sum() + pasted


def test_probability_and_arguments(frames):
    database = cut_objects(frames)
    item = frames.load(0)
    assert ObjectPaste(database, {"car": 5}, probability=0)(item, np.random.default_rng(0)) is item
    assert ObjectPaste(database, {"car": 2})(item, np.random.default_rng(0)) is item  # it has two
    with pytest.raises(ValueError, match=r"`up_to` must have classes .* got 'van'"):
        ObjectPaste(database, {"van": 2})
    with pytest.raises(ValueError, match="at least 0"):
        ObjectPaste(database, {"car": -2})
    with pytest.raises(ValueError, match="without a transform"):
        cut_objects(PointCloudSet(frames.frames, CLASSES, transform=lambda item, rng: item))


def test_classes_are_matched_by_name(frames):
    paste = ObjectPaste(cut_objects(frames), {"person": 3})
    item = frames.load(0)
    other = {**item, "labels": 2 - item["labels"], "classes": ("van", "person", "car")}
    pasted = paste(other, np.random.default_rng(0))
    new = pasted["labels"][len(item["labels"]) :]
    assert len(new) > 0
    assert (new == 1).all()
    with pytest.raises(ValueError, match=r"class 'person', which the dataset \(car\) lacks"):
        paste({**item, "classes": ("car",)}, np.random.default_rng(0))
