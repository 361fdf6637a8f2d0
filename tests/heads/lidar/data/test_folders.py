"""Folders of point clouds with boxes, and the dataset over their frames."""

import json

import numpy as np
import pytest
import torch

from visionattn.errors import DataError
from visionattn.heads.lidar.data.boxes import count_points
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.folders import list_clouds, read_point_folder
from visionattn.heads.lidar.data.frames import PointCloudSet, turn_boxes, turn_points

BOX = [5.0, 1.0, 0.0, 4.0, 2.0, 1.5, 0.3]


def write(folder, name="a", **content):
    points = np.column_stack([np.random.default_rng(0).uniform(-9, 9, (40, 3)), np.full(40, 128)]).astype(np.float32)
    write_points(folder / f"{name}.bin", points)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return points


def test_items(tmp_path):
    boxes = [
        {"class": "car", "box": BOX, "difficulty": 2, "velocity_xy": [1.0, 2.0]},
        {"class": "tram", "box": BOX},
        {"class": "car", "box": BOX, "ignore": True},
        {"class": "person", "box": BOX, "valid": False},
        {"class": "person", "box": BOX},
    ]
    points = write(tmp_path, boxes=boxes, intensity_max=255, columns=["x", "y", "z", "intensity"])
    frames = PointCloudSet(read_point_folder(tmp_path), ["person", "car"])
    item = frames[0]
    assert item["labels"].tolist() == [1, 0]
    assert item["difficulty"].tolist() == [2, 0]
    assert item["ignore_labels"].tolist() == [1, 0]
    assert item["ignore_boxes"].shape == (2, 7)
    assert item["boxes"].dtype == item["points"].dtype == torch.float32
    np.testing.assert_allclose(item["boxes"][0], BOX, rtol=1e-6)
    np.testing.assert_array_equal(item["velocity"].numpy(), [[1, 2], [np.nan, np.nan]])
    np.testing.assert_allclose(item["points"][:, 3], 128 / 255, rtol=1e-6)
    np.testing.assert_array_equal(item["points"][:, :3], points[:, :3])
    assert (item["frame"], item["dropped"], item["labelled_region"]) == ("a", 0, None)
    assert frames.labels(0)["labels"].tolist() == [1, 0]


def test_transforms_follow_numpys_generator(tmp_path):
    write(tmp_path, boxes=[])

    def transform(item, rng):
        return {**item, "points": item["points"] + rng.random(dtype=np.float32)}

    frames = PointCloudSet(read_point_folder(tmp_path), ["car"], transform=transform)
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        draws.append(frames[0]["points"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_axes_are_turned():
    points = np.array([[0.0, 10, 1, 0.5], [3, 0, 0, 0.5]])  # ahead, and to the right
    np.testing.assert_allclose(turn_points(points), [[10, 0, 1, 0.5], [0, -3, 0, 0.5]])
    boxes = np.array([[0, 10, 0, 4, 2, 1, np.pi / 2]])  # ahead, driving ahead
    np.testing.assert_allclose(turn_boxes(boxes), [[10, 0, 0, 4, 2, 1, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "must be an object"),
        ({}, 'list "boxes"'),
        ({"boxes": [{"class": "car"}]}, r"boxes\.0: box must be 7 numbers.*got None"),
        ({"boxes": [{"class": "car", "box": [1, 2, 3]}]}, "7 numbers"),
        ({"boxes": [{"class": "car", "box": [*BOX[:3], 0, 1, 1, 0]}]}, "7 numbers"),
        ({"boxes": [{"class": "car", "box": "abc"}]}, "7 numbers"),
        ({"boxes": [{"box": BOX}]}, '"class"'),
        ({"boxes": [], "intensity_max": 0}, "intensity_max must be a number above 0, got 0"),
        ({"boxes": [], "calib": {"P2": [[1, 2]]}}, "calib is malformed"),
    ],
)
def test_malformed_labels_name_the_file(tmp_path, content, reason):
    write(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"a\.json.*{reason}"):
        read_point_folder(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="folder not found"):
        list_clouds(tmp_path / "x")
    with pytest.raises(DataError, match="no point cloud"):
        read_point_folder(tmp_path)
    write(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(DataError, match=r"a\.json: file not found"):
        read_point_folder(tmp_path)
    assert len(read_point_folder(tmp_path, need_boxes=False)[0].boxes) == 0
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match="same name 'a'"):
        list_clouds(tmp_path)
    (tmp_path / "a.npy").unlink()
    write(tmp_path, boxes=[])
    with pytest.raises(DataError, match="`columns` is 5"):
        PointCloudSet(read_point_folder(tmp_path), ["car"], columns=5)[0]
    with pytest.raises(ValueError, match="distinct names"):
        PointCloudSet([], ["car", "car"])


def test_real_frames(shared_dir):
    folder = shared_dir / "data" / "lidar"
    classes = ("Car", "Pedestrian", "Cyclist", "car", "pedestrian", "barrier")
    frames = read_point_folder(folder)
    plain = PointCloudSet(frames, classes)
    cut = PointCloudSet(frames, classes, crop_to_view=True, x_forward=True)
    assert len(plain) == 7
    for index in range(len(plain)):
        whole, part = plain.load(index), cut.load(index)
        assert 0 <= whole["points"][:, 3].min() <= whole["points"][:, 3].max() <= 1
        if "kitti" in whole["frame"]:
            assert len(part["points"]) < 25000
            assert part["labelled_region"] is not None
        else:
            assert whole["labelled_region"] is None
            assert len(whole["ignore_boxes"]) > 0  # three boxes hold no point
            assert {len(whole["boxes"])} == {len(whole["velocity"])}
        before, after = (count_points(item["points"], item["boxes"]) for item in (whole, part))
        np.testing.assert_array_equal(before, after)  # the boxes turn with their points, and lie in the view
        assert (before > 0).all()
