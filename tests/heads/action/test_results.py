from pathlib import Path

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.action.results import action_record, draw_action, find_points


def result(mask=True):
    covered = np.zeros((3, 2, 3), bool)
    covered[:, 0, 0] = True
    return {
        "class_scores": np.array([0.25, 0.75], np.float32),
        "frames": np.full((3, 30, 40, 3), (200, 100, 50), np.uint8),
        "mask": covered if mask else None,
        "patch_size": 16,
        "frame_indices": [[0, 4, 8]],
        "timing": {"total": 0.1},
    }


def test_record():
    record = action_record(result(), ("walk", "sit"))
    assert record["action"] == "sit"
    assert record["class_scores"] == {"walk": 0.25, "sit": 0.75}
    assert record["with_pose"]
    assert not action_record(result(mask=False), ("walk", "sit"))["with_pose"]


def test_drawing_dims_what_is_outside_of_the_pose():
    picture = draw_action(result(), "sit 0.75")
    assert picture.shape == (160 + 28, 3 * 213, 3)
    assert picture[40, 40].tolist() == [50, 100, 200]  # BGR
    assert picture[140, 180].tolist() == [18, 35, 70]
    assert draw_action(result(mask=False), "sit")[140, 180].tolist() == [50, 100, 200]
    assert picture[160:].max() == 255


def test_finding_key_points(tmp_path):
    (tmp_path / "b_pose3d.json").touch()
    video = Path("videos/b.mp4")
    assert find_points(video, None) is None
    assert find_points(video, tmp_path) == tmp_path / "b_pose3d.json"
    assert find_points(Path("c.mp4"), tmp_path / "b_pose3d.json") == tmp_path / "b_pose3d.json"
    with pytest.raises(DataError, match="has no key points of it"):
        find_points(Path("c.mp4"), tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        find_points(video, tmp_path / "none")
