import json
import pickle

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.action.keypoints import FLIP_PAIRS, JOINTS, read_points

NAN = float("nan")


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_smarthome(tmp_path):
    """x of all joints, then y, of the first person; one unknown joint means that the frame has no pose."""
    frames = [[{"pose2d": [1, 2, 3, 4]}, {"pose2d": [9, 9, 9, 9]}], [], [{"pose2d": [1, -1, 3, 4]}]]
    points = read_points(write(tmp_path / "a.json", {"njts": 2, "frames": frames}))
    expected = [[[[1, 3], [2, 4]]], [[[NAN, NAN]] * 2], [[[NAN, NAN]] * 2]]
    np.testing.assert_array_equal(points, np.array(expected, np.float32))


def ntu_text(frames):
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for joints in bodies:
            lines += ["72057594037931101 0 1 1 0 0 0 -0.4 0.2 2", str(len(joints))]
            lines += [f"0.1 0.2 3.0 256.5 200.1 {x} {y} 0 0 0 0 2" for x, y in joints]
    return "\n".join(lines) + "\n"


def test_ntu(tmp_path):
    text = ntu_text([[[(1, 2), (3, 4)]], [], [[(5, 6), (7, 8)], [(9, 10), (11, "NaN")]]])
    points = read_points(write(tmp_path / "a.skeleton", text))
    assert points.shape == (3, 2, 2, 2)
    assert points[0, 0].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(points[1]).all()
    assert points[2, 1, 0].tolist() == [9, 10]
    assert np.isnan(points[2, 1, 1]).all()
    for cut in (3, 20, 60, len(text) // 2):
        with pytest.raises(DataError, match=r"b\.skeleton: (is truncated|is damaged|frame)"):
            read_points(write(tmp_path / "b.skeleton", text[:cut]))


def test_ntu_pickles_are_refused_unless_asked(tmp_path):
    bodies = {"njoints": 25, "rgb_body0": np.ones((4, 25, 2)), "rgb_body1": np.zeros((4, 25, 2))}
    np.save(tmp_path / "a.skeleton.npy", bodies, allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.skeleton\.npy: is a pickle, which can execute code"):
        read_points(tmp_path / "a.skeleton.npy")
    points = read_points(tmp_path / "a.skeleton.npy", allow_pickle=True)
    assert points.shape == (4, 2, 25, 2)
    assert (points[:, 0] == 1).all()
    (tmp_path / "c.npy").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"c\.npy"):
        read_points(tmp_path / "c.npy")


def test_kinetics(tmp_path):
    """Frames may be missing from the list; a score of 0 is a missing joint; coordinates stay shares."""
    frame = {"frame_index": 3, "skeleton": [{"pose": [0.1, 0.2, 0, 0], "score": [0.5, 0]}]}
    points = read_points(write(tmp_path / "a.json", {"data": [frame], "label": "x"}))
    assert points.shape == (3, 1, 2, 2)
    assert np.isnan(points[:2]).all()
    assert points[2, 0, 0].tolist() == pytest.approx([0.1, 0.2])
    assert np.isnan(points[2, 0, 1]).all()
    assert np.isnan(read_points(tmp_path / "a.json", min_score=0.6)).all()
    frame["frame_index"] = 10**12
    with pytest.raises(DataError, match=r"frame_index must be in .* got 1000000000000"):
        read_points(write(tmp_path / "b.json", {"data": [frame]}))


def test_coco_of_several_sets(shared_dir):
    for name in ("coco", "ochuman", "posetrack18"):
        path = shared_dir / f"data/clips/keypoints/{name}/keypoints.json"
        content = json.loads(path.read_text())
        points = read_points(path)
        assert points.shape[0] == len(content["images"])
        assert points.shape[2] == 17
        visible = sum(v > 0 for a in content["annotations"] for v in a.get("keypoints", [])[2::3])
        assert np.isfinite(points).all(-1).sum() == visible


def test_coco_frames_in_order(tmp_path):
    images = [{"id": 7, "frame_id": 2}, {"id": 5, "frame_id": 1}]
    annotations = [{"image_id": 7, "keypoints": [1, 2, 2, 3, 4, 0]}, {"image_id": 5, "keypoints": [5, 6, 1, 7, 8, 2]}]
    points = read_points(write(tmp_path / "a.json", {"images": images, "annotations": annotations}))
    assert points[0, 0].tolist() == [[5, 6], [7, 8]]
    assert np.isnan(points[1, 0, 1]).all()
    annotations[0]["image_id"] = 9
    with pytest.raises(DataError, match="an annotation refers to image 9"):
        read_points(write(tmp_path / "b.json", {"images": images, "annotations": annotations}))


def test_csv(tmp_path):
    text = "frame,joint,x,y,score,person\n0,1,5,6,0.9,0\n2,0,7,8,0.2,1\n2,1,,9,1,0\n"
    with pytest.raises(DataError, match=r"a\.csv:4: x is empty"):
        read_points(write(tmp_path / "a.csv", text))
    with pytest.raises(DataError, match=r"d\.csv:2: frame is empty"):
        read_points(write(tmp_path / "d.csv", "frame,joint,x,y\n,0,1,1\n"))
    points = read_points(write(tmp_path / "a.csv", text.replace("2,1,,9", "2,1,nan,9")), min_score=0.1)
    assert points.shape == (3, 2, 2, 2)
    assert points[0, 0, 1].tolist() == [5, 6]
    assert points[2, 1, 0].tolist() == [7, 8]
    assert np.isfinite(points).all(-1).sum() == 2
    with pytest.raises(DataError, match="joint is missing"):
        read_points(write(tmp_path / "b.csv", "frame,x,y\n"))
    with pytest.raises(DataError, match=r"c\.csv:2: frame, person and joint must be .* got \(-1, 0, 0\)"):
        read_points(write(tmp_path / "c.csv", "frame,joint,x,y\n-1,0,1,1\n"))


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 17, 3)))
    assert read_points(tmp_path / "a.npy").shape == (4, 1, 17, 2)
    assert np.isnan(read_points(tmp_path / "a.npy", min_score=2)).all()
    np.save(tmp_path / "b.npy", np.ones((4, 17)))
    with pytest.raises(DataError, match=r"b\.npy: must be .* got \(4, 17\)"):
        read_points(tmp_path / "b.npy")
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(DataError, match=r"c\.npy: is damaged"):
        read_points(tmp_path / "c.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ([1], "unknown keypoint format"),
        ({"frames": [[{}]]}, "lacks 'pose2d'"),
        ({"frames": [[{"pose2d": [1, 2, 3]}]]}, "frame 0: pose2d must be a flat list"),
        (
            {"frames": [[{"pose2d": [1, 2]}], [{"pose2d": [1, 2, 3, 4]}]]},
            "frame 1: all people must have 1 joints, got 2",
        ),
        ({"frames": []}, "contains no frames"),
        ({"frames": [5]}, "damaged"),
        ({"data": [{"frame_index": 1, "skeleton": [{"pose": ["a", 2]}]}]}, "damaged"),
        ({"images": [], "annotations": []}, "contains no frames"),
    ],
)
def test_damaged(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_points(write(tmp_path / "a.json", content))


def test_missing_file_and_kind(tmp_path):
    with pytest.raises(DataError, match="keypoint file not found"):
        read_points(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"`kind` must be one of .* got 'x'"):
        read_points(write(tmp_path / "a.json", "{}"), "x")


def test_huge_and_infinite_coordinates(tmp_path):
    frames = [[{"pose2d": [1e308, 5, 1, float("inf")]}]]
    points = read_points(write(tmp_path / "a.json", {"frames": frames}))
    assert np.isnan(points[0, 0]).all()  # 1e308 is beyond float32


def test_flip_pairs():
    for name, pairs in FLIP_PAIRS.items():
        joints = [j for pair in pairs for j in pair]
        assert len(set(joints)) == len(joints)
        assert max(joints) < JOINTS[name]
