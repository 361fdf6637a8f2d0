import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.action.clips import Clip, probe_video, read_frames, sample_indices
from visionattn.heads.action.keypoints import FLIP_PAIRS

cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames whose gray value is 10 times their number."""
    path = tmp_path_factory.mktemp("video") / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 15, (32, 24))
    for number in range(20):
        writer.write(np.full((24, 32, 3), 10 * number, np.uint8))
    writer.release()
    return path


def test_reading(video):
    info = probe_video(video)
    assert (info.frames, info.fps, info.width, info.height) == (20, 15, 32, 24)
    frames = read_frames(video, [7, 3, 3, 19])
    assert frames.shape == (4, 24, 32, 3)
    assert np.abs(frames.mean((1, 2, 3)) - [70, 30, 30, 190]).max() < 2
    again = read_frames(video, [20, 5])  # one more than there are
    assert np.abs(again.mean((1, 2, 3)) - [190, 50]).max() < 2


def test_colours(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 15, (32, 24))
    writer.write(np.full((24, 32, 3), (0, 0, 250), np.uint8))
    writer.release()
    red, green, blue = read_frames(tmp_path / "a.avi", [0]).mean((0, 1, 2))
    assert red > 220 > 60 > max(green, blue)


def test_damaged(video, tmp_path):
    with pytest.raises(DataError, match="video file not found"):
        probe_video(tmp_path / "b.avi")
    (tmp_path / "c.mp4").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"c\.mp4: is not a supported video"):
        read_frames(tmp_path / "c.mp4", [0])
    content = video.read_bytes()
    (tmp_path / "d.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"d\.avi: is (damaged or truncated: frame 19|not a supported video)"):
        read_frames(tmp_path / "d.avi", [19])
    with pytest.raises(ValueError, match="`indices` must be one or more"):
        read_frames(video, [])


def test_real_videos(shared_dir):
    for name, frames, fps in (("exercise_3people.mp4", 393, 10), ("pose2sim_multi_cam02.mp4", 100, 60)):
        path = shared_dir / "data/clips" / name
        info = probe_video(path)
        assert (info.frames, info.fps) == (frames, fps)
        indices = sample_indices(info.frames, info.fps, 2, 4)
        assert read_frames(path, indices).shape == (2, info.height, info.width, 3)


def test_published_sampling():
    """T = 8 at distance 32 of a video with 25 frames in a second: clips of 213 frames."""
    length = 32 * 8 / 30 * 25
    for view in range(10):
        start = (300 - length) * view / 10
        expected = np.clip(np.linspace(start, start + length - 1, 8), 0, 298).astype(int)
        found = sample_indices(300, 25, 8, 32, view=view, views=10)
        assert found.tolist() == expected.tolist()
    short = sample_indices(50, 30, 8, 32)  # a video shorter than the clip stays at its last but one
    assert short.tolist() == [0, 36, 48, 48, 48, 48, 48, 48]
    assert sample_indices(1, 30, 4, 1).tolist() == [0] * 4


def test_random_sampling_covers_the_video():
    rng = np.random.default_rng(0)
    starts = [sample_indices(100, 30, 4, 5, rng=rng)[0] for _ in range(300)]
    assert min(starts) <= 2
    assert 76 <= max(starts) <= 80
    last = [sample_indices(100, 30, 4, 5, rng=rng).max() for _ in range(300)]
    assert max(last) <= 98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 30, 4, 1), "`frames` must be at least 1, got 0"),
        ((9, 0, 4, 1), "`fps` must be .* got 0"),
        ((9, float("nan"), 4, 1), "`fps` must be .* got nan"),
        ((9, 30, 0, 1), "`count` must be at least 1, got 0"),
    ],
)
def test_bad_sampling(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_indices(*arguments)
    with pytest.raises(ValueError, match=r"`view` must be in 0\.\.2, got 3"):
        sample_indices(9, 30, 4, 1, view=3, views=3)


def marked(height=40, width=60):
    """Clips whose joints are bright blots; left is red, right is green."""
    points = np.array([[[[20.0, 10.0], [44.0, 30.0]]]])
    frames = np.zeros((1, height, width, 3), np.uint8)
    for channel, (x, y) in enumerate(points[0, 0].astype(int)):
        frames[0, y - 1 : y + 2, x - 1 : x + 2, channel] = 255
    return Clip(frames, points)


def assert_aligned(clip, order=(0, 1)):
    for channel, joint in enumerate(order):
        rows, columns = np.nonzero(clip.frames[0, :, :, channel] > 100)
        x, y = clip.points[0, 0, joint]
        assert abs(columns.mean() - x) <= 1.01
        assert abs(rows.mean() - y) <= 1.01


def test_points_follow_the_frames():
    clip = marked()
    assert_aligned(clip)
    assert_aligned(clip.crop(4, 12, 30, 40))
    assert_aligned(clip.flipped())
    assert_aligned(clip.flipped([(0, 1)]), (1, 0))
    assert_aligned(clip.resized(80, 90))
    small = clip.short_side(20)
    assert small.size == (20, 30)
    assert_aligned(small)
    twice = clip.flipped([(0, 1)]).flipped([(0, 1)])
    assert np.array_equal(twice.points, clip.points)
    assert np.array_equal(twice.frames, clip.frames)


def test_flip_keeps_missing_joints_missing():
    points = np.full((1, 1, 17, 2), np.nan)
    points[0, 0, 5] = 3, 4
    found = Clip(np.zeros((1, 10, 20, 3), np.uint8), points).flipped(FLIP_PAIRS["coco"]).points
    assert found[0, 0, 6].tolist() == [16, 4]
    assert np.isfinite(found).sum() == 2


def test_bad_changes():
    clip = marked()
    with pytest.raises(ValueError, match="crop must be within"):
        clip.crop(20, 0, 30, 10)
    with pytest.raises(ValueError, match=r"`pairs` must have joints in 0\.\.1, got \(0, 2\)"):
        clip.flipped([(0, 2)])
    with pytest.raises(ValueError, match="`height` and `width` must be at least 1"):
        clip.resized(0, 4)
    assert Clip(clip.frames).flipped().crop(0, 0, 5, 5).points is None
