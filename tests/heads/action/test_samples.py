import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.action.clips import probe_video, read_frames
from visionattn.heads.action.keypoints import read_points
from visionattn.heads.action.lists import read_action_list
from visionattn.heads.action.samples import COLORS, LIMBS, build_moving_figures, draw_clip

pytest.importorskip("cv2")
ENDS = {0: 7, 1: 6, 2: 1, 3: 0}  # wrist or ankle of each limb
MIDDLES = {0: 9, 1: 8, 2: 3, 3: 2}


@pytest.mark.parametrize("label", range(4))
def test_the_class_is_the_limb_that_moves(label):
    for seed in range(5):
        pictures, points = draw_clip(np.random.default_rng(seed), label, 64, 14, 2)
        assert pictures.shape == (14, 64, 64, 3)
        spread = {limb: np.ptp(points[:, joint], axis=0).max() for limb, joint in ENDS.items()}
        assert max(spread, key=spread.get) == label
        assert sorted(spread.values())[-2] < 1e-4  # all others hold still


def test_key_points_lie_on_their_limbs():
    """The colours of the picture at elbows and knees are those of the limbs."""
    hits = total = 0
    for seed in range(20):
        pictures, points = draw_clip(np.random.default_rng(seed), seed % 4, 96, 6, 1)
        for limb, joint in MIDDLES.items():
            x, y = np.rint(points[0, joint]).astype(int)
            if 0 <= x < 96 and 0 <= y < 96:
                near = np.abs(pictures[0, y, x].astype(int)[None] - np.array(COLORS)).sum(1)
                hits += near.argmin() == limb
                total += 1
    assert hits > 0.9 * total > 50


def test_figures_swing_different_limbs():
    """Without its head nothing tells which figure counts: the colours move in as many limbs as there are figures."""
    pictures, points = draw_clip(np.random.default_rng(3), 1, 64, 14, 3)
    other, _ = draw_clip(np.random.default_rng(3), 2, 64, 14, 3)
    assert not np.array_equal(pictures, other)
    assert points.dtype == np.float32


def test_files(tmp_path):
    folder = build_moving_figures(tmp_path / "figures", train=5, val=4, test=4, size=32, frames=6)
    items = read_action_list(folder / "train.csv", folder / "videos", folder / "poses", classes=len(LIMBS))
    assert [item.label for item in items] == [0, 1, 2, 3, 0]
    assert probe_video(items[0].video).frames == 6
    assert read_frames(items[0].video, [5]).shape == (1, 32, 32, 3)
    assert read_points(items[0].points).shape == (6, 1, 13, 2)
    drawn, points = draw_clip(np.random.default_rng([0, 0, 1]), 1, 32, 6, 2)
    assert np.array_equal(read_points(items[1].points)[:, 0], points)
    assert np.abs(read_frames(items[1].video, [2])[0].astype(int) - drawn[2]).mean() < 12
    before = (folder / "train.csv").stat().st_mtime_ns
    assert build_moving_figures(folder, train=5, val=4, test=4, size=32, frames=6) == folder
    assert (folder / "train.csv").stat().st_mtime_ns == before


def test_bad_numbers(tmp_path):
    with pytest.raises(DataError, match=r"`figures` must be a whole number in 1\.\.4, got 5"):
        build_moving_figures(tmp_path / "a", figures=5)
    with pytest.raises(DataError, match=r"`size` must be .* got 8"):
        build_moving_figures(tmp_path / "a", size=8)
