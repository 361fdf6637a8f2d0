from pathlib import Path

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.action.job import ActionJob
from visionattn.heads.action.results import ActionPrediction, find_points
from visionattn.inference import Options


def prediction(mask=True) -> ActionPrediction:
    covered = np.zeros((3, 2, 3), bool)
    covered[:, 0, 0] = True
    return ActionPrediction(
        ("walk", "sit"),
        np.array([0.25, 0.75], np.float32),
        [[0, 4, 8]],
        np.full((3, 30, 40, 3), (200, 100, 50), np.uint8),
        covered if mask else None,
    )


def test_record(make_model):
    job = ActionJob(make_model(classes=("walk", "sit")), Options())
    record = job.record(prediction(), 0)
    assert record == {
        "action": "sit",
        "action_score": 0.75,
        "class_scores": {"walk": 0.25, "sit": 0.75},
        "with_pose": True,
        "frames": [[0, 4, 8]],
    }
    assert not job.record(prediction(mask=False), 0)["with_pose"]
    assert job.lines(record, job.count(prediction())) == ["sit, score 0.750, with keypoints"]


def test_number_of_scores_must_fit():
    with pytest.raises(ValueError, match=r"must be \[1\]"):
        ActionPrediction(("walk",), np.zeros(2, np.float32), [], np.zeros((1, 4, 4, 3), np.uint8))


def test_drawing_dims_patches_without_key_points():
    picture = prediction().draw()
    assert picture.shape == (160 + 28, 3 * 213, 3)
    assert picture[40, 40].tolist() == [50, 100, 200]  # BGR
    assert picture[140, 180].tolist() == [18, 35, 70]
    assert prediction(mask=False).draw()[140, 180].tolist() == [50, 100, 200]
    assert picture[160:].max() == 255


def test_images_are_rejected(make_model, tmp_path, painted, save_picture):
    job = ActionJob(make_model(classes=("walk", "sit")), Options())
    with pytest.raises(DataError, match="is not a video"):
        job.read(save_picture(tmp_path / "x.png", painted(20, 30)))


def test_finding_key_points(tmp_path):
    (tmp_path / "b_pose3d.json").touch()
    video = Path("videos/b.mp4")
    assert find_points(video, None) is None
    assert find_points(video, tmp_path) == tmp_path / "b_pose3d.json"
    assert find_points(Path("c.mp4"), tmp_path / "b_pose3d.json") == tmp_path / "b_pose3d.json"
    with pytest.raises(DataError, match="has no keypoints for it"):
        find_points(Path("c.mp4"), tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find_points(video, tmp_path / "none")
