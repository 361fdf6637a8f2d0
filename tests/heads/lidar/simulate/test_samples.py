"""The folder of simulated scans."""

import json

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.folders import read_point_folder
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.simulate.rays import Lidar
from visionattn.heads.lidar.simulate.samples import build_lidar_samples, difficulty
from visionattn.heads.lidar.simulate.scenes import CLASSES, MIN_POINTS, simulate_scan

SMALL = Lidar(beams=16, azimuths=256)


@pytest.fixture
def folder(tmp_path):
    return build_lidar_samples(tmp_path / "set", train=3, val=2, lidar=SMALL, seed=5)


def test_it_reads_back(folder):
    for number, (split, count) in enumerate((("train", 3), ("val", 2))):
        frames = PointCloudSet(read_point_folder(folder / split), CLASSES)
        assert len(frames) == count
        for index in range(count):
            scan, item = simulate_scan([5, number, index], SMALL, 50.0), frames[index]
            np.testing.assert_array_equal(item["points"], scan.points)
            labelled = scan.counts >= MIN_POINTS
            np.testing.assert_allclose(item["boxes"], scan.boxes[labelled], atol=1e-4)
            np.testing.assert_array_equal(item["labels"], scan.labels[labelled])
            assert len(item["ignore_boxes"]) == (~labelled).sum()
            assert set(item["difficulty"].tolist()) <= {0, 1, 2}


def test_manifest_counts(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    for split, known in manifest["splits"].items():
        frames = PointCloudSet(read_point_folder(folder / split), CLASSES)
        labels = np.concatenate([item["labels"] for item in frames])
        assert [known["boxes"][name] for name in CLASSES] == np.bincount(labels, minlength=3).tolist()
        assert known["points"] == sum(len(item["points"]) for item in frames)
    assert "All data is simulated" in " ".join((folder / "README.txt").read_text().split())


def test_it_is_made_once_and_other_folders_are_left_alone(folder, tmp_path):
    before = (folder / "train" / "000000.bin").stat().st_mtime_ns
    assert build_lidar_samples(folder, train=3, val=2, lidar=SMALL, seed=5) == folder
    assert (folder / "train" / "000000.bin").stat().st_mtime_ns == before
    build_lidar_samples(folder, train=1, val=1, lidar=SMALL, seed=5)
    assert len(read_point_folder(folder / "train")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="contains files that visionattn did not create"):
        build_lidar_samples(tmp_path / "mine", train=1, val=1, lidar=SMALL)


def test_difficulty():
    counts, visible = np.array([40, 39, 100, 15, 14, 100]), np.array([0.7, 1.0, 0.69, 0.4, 1.0, 0.39])
    assert difficulty(counts, visible).tolist() == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("bad", [{"train": 0}, {"val": True}, {"seed": -1}, {"extent": 5.0}, {"train": 2.5}])
def test_arguments(tmp_path, bad):
    with pytest.raises(DataError, match=f"`{next(iter(bad))}` must be"):
        build_lidar_samples(tmp_path / "x", **bad)
