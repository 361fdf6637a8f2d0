import json

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("cv2")

import cv2
from mmengine.config import Config

from visionattn.errors import ConfigError, DataError
from visionattn.heads.action.clips import Clip
from visionattn.heads.action.masks import joint_targets, patch_masks
from visionattn.heads.action.mmlab_data import (
    ActionDataset,
    CropClip,
    FlipClip,
    LoadClip,
    PackClip,
    ResizeClip,
    read_clip_samples,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A video of 30 frames with a bright blot that moves to the right, and the file of its place."""
    folder = tmp_path_factory.mktemp("clip")
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48))
    points = np.stack([np.arange(30.0) + 10, np.full(30, 20.0)], 1)[:, None]
    for x, y in points[:, 0].astype(int):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[y - 2 : y + 3, x - 2 : x + 3] = 255
        writer.write(frame)
    writer.release()
    np.save(folder / "a.npy", points)
    (folder / "list.csv").write_text("a.avi,a.npy,2\n")
    return folder


def load(files, **options):
    step = LoadClip(**{"num_frames": 4, "rate": 5, **options})
    return step({"video_path": str(files / "a.avi"), "points_path": str(files / "a.npy"), "gt_label": 2})


def assert_aligned(results):
    for clip in results["clips"]:
        for frame, points in zip(clip.frames, clip.points, strict=True):
            rows, columns = np.nonzero(frame.max(2) > 120)
            assert abs(columns.mean() - points[0, 0, 0]) < 1.5
            assert abs(rows.mean() - points[0, 0, 1]) < 1.5


def test_frames_and_points_are_of_the_same_time(files):
    results = load(files, views=3)
    assert len(results["clips"]) == 3
    assert [view[0] for view in results["frame_indices"]] == [0, 3, 6]
    assert_aligned(results)


def test_random_clips_follow_numpys_generator(files):
    np.random.seed(3)
    first = load(files, views="random")["frame_indices"]
    np.random.seed(3)
    assert load(files, views="random")["frame_indices"] == first
    assert_aligned(load(files, views="random"))


def test_changes_keep_frames_and_points_together(files):
    results = load(files)
    for step in (ResizeClip(96), CropClip(90, "random"), FlipClip(1.0)):
        results = step(results)
        assert_aligned(results)
    assert results["clips"][0].size == (90, 90)
    assert FlipClip(0.0)(results)["clips"][0] is results["clips"][0]


def test_three_crops(files):
    results = CropClip(40, "three")(load(files, views=2))
    assert len(results["clips"]) == 6
    assert_aligned({"clips": results["clips"][:1]})
    left, _, right = results["clips"][:3]
    assert right.points[0, 0, 0, 0] - left.points[0, 0, 0, 0] == -24


def test_packing(files):
    results = load(files, views=2)
    packed = PackClip(patch_size=16, inflation=None)(results)
    assert packed["inputs"].shape == (2, 3, 4, 48, 64)
    data, clip = packed["data_samples"], results["clips"][1]
    assert data.gt_label == 2
    assert np.array_equal(data.pose_mask[1], patch_masks(clip.points, (48, 64), 16, None))
    assert np.array_equal(data.joint_targets[1], joint_targets(clip.points, (48, 64), 16))
    assert data.pose_mask.sum() == 8
    bare = PackClip()(LoadClip(4, 5, points=False)({"video_path": str(files / "a.avi")}))["data_samples"]
    assert "pose_mask" not in bare
    assert "gt_label" not in bare


def test_shares_of_the_frame_become_pixels(files, tmp_path):
    data = [{"frame_index": n + 1, "skeleton": [{"pose": [(n + 10) / 64, 20 / 48]}]} for n in range(30)]
    (tmp_path / "a.json").write_text(json.dumps({"data": data}))
    for kind in ("kinetics", None):
        step = LoadClip(4, 5, kind=kind)
        assert_aligned(step({"video_path": str(files / "a.avi"), "points_path": str(tmp_path / "a.json")}))


def test_points_that_end_before_the_video_are_missing(files, tmp_path):
    np.save(tmp_path / "short.npy", np.load(files / "a.npy")[:8])
    results = LoadClip(4, 5)({"video_path": str(files / "a.avi"), "points_path": str(tmp_path / "short.npy")})
    (indices,) = results["frame_indices"]
    assert np.isfinite(results["clips"][0].points[:, 0, 0, 0]).tolist() == [index < 8 for index in indices]


def test_dataset(files):
    options = {"ann_file": "list.csv", "data_root": str(files), "pipeline": []}
    dataset = ActionDataset(**options, data_prefix=dict(video="", points=""))
    record = dataset[0]
    assert (record["video_path"], record["gt_label"]) == (str(files / "a.avi"), 2)
    assert dataset.metainfo["classes"] == ("0", "1", "2")
    with pytest.raises(DataError, match="below the number of classes 2, got 2"):
        ActionDataset(**options, data_prefix=dict(video="", points=""), metainfo=dict(classes=("a", "b")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoadClip(views=0), "`views` must be .* got 0"),
        (lambda: LoadClip(kind="x"), "`kind` must be one of .* got 'x'"),
        (lambda: LoadClip(num_frames=0), "`num_frames` and `rate` must be .* got 0"),
        (lambda: ResizeClip((5, 3)), r"`short` must be .* got \(5, 3\)"),
        (lambda: CropClip(8, "left"), "`where` one of .* got 8 and 'left'"),
        (lambda: FlipClip(2), r"`prob` must be in \[0, 1\], got 2"),
        (lambda: FlipClip(joints="x"), "`joints` must be None or .* got 'x'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_crop_of_small_frames(files):
    with pytest.raises(DataError, match="frames of 64 x 48 are smaller than the crop of 64"):
        CropClip(64)(load(files))


def test_samples_for_drawing_have_the_points_of_their_frames(files):
    steps = [{"type": f"visionattn.{name}"} for name in ("LoadClip", "FlipClip", "PackClip")]
    steps[0].update(num_frames=4, rate=5)
    dataset = {
        "type": "visionattn.ActionDataset", "data_root": str(files), "ann_file": "list.csv",
        "metainfo": {"classes": ("up", "down", "right")}, "pipeline": steps,
    }  # fmt: skip
    config = Config({"train_dataloader": {"dataset": dataset}, "default_scope": "mmengine"})
    ((name, action, frames, points),) = read_clip_samples(config, "train", 2)
    assert (name, action) == ("a.avi", "right")
    assert_aligned({"clips": [Clip(frames, points)]})
    config.train_dataloader.dataset.pipeline[0].points = False
    ((_, _, frames, points),) = read_clip_samples(config, "train", 2)
    assert points.shape == (4, 0, 0, 2)


def test_check(files, tmp_path):
    np.save(tmp_path / "empty.npy", np.full((30, 1, 2), np.nan))
    video = files / "a.avi"
    (tmp_path / "list.csv").write_text(f"{video},{files / 'a.npy'},2\n{video},{tmp_path / 'empty.npy'},0\n{video},1\n")
    dataset = ActionDataset(str(tmp_path / "list.csv"), metainfo={"classes": ("a", "b", "c", "d")})
    line = dataset.check()
    assert line.startswith("3 videos, 2 with keypoints; 1 of 2 keypoint files without points, such as")
    assert line.endswith("; none of d")
    assert dataset.check([{"type": "visionattn.LoadClip", "points": False}]) == "3 videos, 0 with keypoints; none of d"
    (tmp_path / "empty.npy").write_bytes(b"x")
    with pytest.raises(DataError, match=r"empty\.npy"):
        dataset.check()
    (tmp_path / "empty.npy").unlink()
    with pytest.raises(DataError, match="keypoint file does not exist"):
        dataset.check()
    (tmp_path / "list.csv").write_text("no.avi,0\nneither.avi,0\n")
    with pytest.raises(DataError, match=r"no\.avi.* \(and 1 more\)"):
        ActionDataset(str(tmp_path / "list.csv")).check()


def test_check_refuses_keypoints_without_points(files, tmp_path):
    np.save(tmp_path / "empty.npy", np.full((30, 1, 2), np.nan))
    (tmp_path / "list.csv").write_text(f"{files / 'a.avi'},{tmp_path / 'empty.npy'},0\n")
    with pytest.raises(DataError, match="has no point, as all keypoint files"):
        ActionDataset(str(tmp_path / "list.csv")).check()
