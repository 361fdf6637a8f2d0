"""Frames by the name of their layout, and object databases."""

import json
from pathlib import Path

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.frames import PointCloudFrame, balanced_frames
from visionattn.heads.lidar.data.layouts import LAYOUTS, build_object_database, known_classes, read_frames
from visionattn.heads.lidar.data.object_database import ObjectDatabase
from visionattn.heads.lidar.simulate.rays import Lidar
from visionattn.heads.lidar.simulate.samples import build_lidar_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lidar") / "set"
    return build_lidar_samples(folder, train=3, val=1, lidar=Lidar(beams=16, azimuths=256))


def test_folder(samples, tmp_path):
    assert len(read_frames("folder", samples, "train")) == len(read_frames("folder", samples / "train")) == 3
    assert known_classes("folder", samples) == known_classes("folder", samples / "train")
    database = build_object_database(tmp_path / "deep" / "o.npz", "folder", samples, "train")
    again = ObjectDatabase.load(tmp_path / "deep" / "o.npz")
    np.testing.assert_array_equal(again.boxes, database.boxes)
    manifest = json.loads((samples / "manifest.json").read_text())["splits"]["train"]["boxes"]
    assert np.bincount(again.labels, minlength=3).tolist() == list(manifest.values())
    few = build_object_database(tmp_path / "f.npz", "folder", samples, "train", ["car"], least_points=20)
    assert 0 < len(few) < manifest["car"]


def test_what_is_refused(samples, tmp_path):
    with pytest.raises(DataError, match=r"`layout` must be one of .* got 'waymo'"):
        read_frames("waymo", samples)
    with pytest.raises(DataError, match="`split` does not apply to layout 'infos'"):
        read_frames("infos", samples / "x.pkl", "val")
    for layout in LAYOUTS:
        with pytest.raises(DataError, match="none"):
            read_frames(layout, tmp_path / "none")
    assert known_classes("folder", tmp_path) is None
    with pytest.raises(DataError, match="set `classes`"):
        build_object_database(tmp_path / "o.npz", "folder", tmp_path)
    with pytest.raises(DataError, match=r"must end in \.npz"):
        build_object_database(tmp_path / "o.pkl", "folder", samples, "train")
    with pytest.raises(DataError, match="no object of tram"):
        build_object_database(tmp_path / "o.npz", "folder", samples, "train", ["tram"])


def test_balanced_frames_have_each_class_equally_often():
    one, two = (
        PointCloudFrame("a", Path("a"), classes=("car",)),
        PointCloudFrame("b", Path("b"), classes=("car", "bus")),
    )
    frames = [*[one] * 8, two, PointCloudFrame("c", Path("c"))]
    chosen = balanced_frames(frames, ("car", "bus", "tram"))
    # 9 frames with a car and 1 with a bus, of 3 classes: 3 of each class that there is.
    assert len(chosen) == 6
    assert [frame.name for frame in chosen[3:]] == ["b"] * 3
    assert {frame.name for frame in chosen[:3]} <= {"a", "b"}
    assert balanced_frames(frames, ("car", "bus", "tram")) == chosen
    assert balanced_frames([frames[-1]], ("car",)) == []
