"""KITTI in its own layout."""

import json

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.boxes import box_corners, points_in_box
from visionattn.heads.lidar.data.camera_view import velo_to_rect
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.data.kitti import (
    CLASSES,
    KittiObject,
    camera_to_lidar,
    kitti_difficulty,
    read_calib,
    read_kitti,
    read_label,
)

P2 = [[700.0, 0, 600, 45], [0, 700, 180, -0.3], [0, 0, 1, 0.005]]
SMALL = np.array([[1, 0.01, -0.008], [-0.01, 1, -0.004], [0.008, 0.004, 1]])
R0 = np.linalg.qr(SMALL)[0] * np.sign(np.diag(np.linalg.qr(SMALL)[1]))
TR = np.array([[0.007, -1, -0.003, -0.02], [-0.001, 0.003, -1, -0.06], [1, 0.007, -0.001, -0.33]])
CALIB = {"P2": np.array(P2), "R0_rect": R0, "Tr_velo_to_cam": TR}


def entry(name="Car", location=(2.0, 1.6, 15.0), rotation=0.4, rectangle=(500, 150, 600, 250), **more) -> KittiObject:
    values = {"truncated": 0.0, "occluded": 0, "size": (1.5, 1.7, 4.1), **more}
    return KittiObject(name, rectangle=rectangle, location=location, rotation_y=rotation, **values)


def line(e: KittiObject) -> str:
    values = [e.truncated, e.occluded, -1.0, *e.rectangle, *e.size, *e.location, e.rotation_y]
    return f"{e.name} " + " ".join(str(v) for v in values)


def write_set(root, number="000003", entries=()):
    base = root / "training"
    for folder in ("velodyne", "calib", "label_2"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    points = np.random.default_rng(0).uniform(-30, 30, (3000, 4)).astype(np.float32)
    points[:, 3] = 0.5
    write_points(base / "velodyne" / f"{number}.bin", points)
    rows = {"P0": P2, "P2": P2, "R0_rect": R0, "Tr_velo_to_cam": TR, "Tr_imu_to_velo": TR}
    text = "\n".join(f"{k}: {' '.join(str(v) for v in np.ravel(m))}" for k, m in rows.items())
    (base / "calib" / f"{number}.txt").write_text(text + "\n\n")
    (base / "label_2" / f"{number}.txt").write_text("\n".join(line(e) for e in entries) + "\n")


@pytest.mark.parametrize("rotation", [-3.0, -1.5, 0.0, 0.7, 1.57, 2.9])
def test_corners_agree_with_the_camera_frame(rotation):
    """The box of the camera's frame, built there by KITTI's definition, has the same corners."""
    objects = [entry(rotation=rotation)]
    h, w, length = objects[0].size
    x = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * length / 2
    y = np.array([0, 0, 0, 0, -1, -1, -1, -1]) * h
    z = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * w / 2
    c, s = np.cos(rotation), np.sin(rotation)
    camera = np.stack([c * x + s * z, y, -s * x + c * z]) + np.array(objects[0].location)[:, None]
    back = np.linalg.inv(velo_to_rect(R0, TR))
    lidar = (back @ np.vstack([camera, np.ones(8)]))[:3].T
    mine = box_corners(camera_to_lidar(objects, CALIB))[0]
    distance = np.linalg.norm(lidar[:, None] - mine[None], axis=-1)
    assert sorted(distance.argmin(1)) == list(range(8))
    assert distance.min(1).max() < 0.05  # the frames are tilted by about a hundredth


def test_frames(tmp_path):
    entries = [
        entry(),
        entry("Van", (-4.0, 1.6, 20.0)),
        entry("Pedestrian", (1.0, 1.6, 9.0), occluded=2),
        entry("Person_sitting", (3.0, 1.6, 9.0)),
        entry("Misc", (5.0, 1.6, 9.0)),
        entry("DontCare", (-1000.0, -1000.0, -1000.0), -10, (10, 20, 30, 40), truncated=-1.0, occluded=-1,
              size=(-1.0, -1.0, -1.0)),
    ]  # fmt: skip
    write_set(tmp_path, entries=entries)
    (frame,) = read_kitti(tmp_path)
    assert frame.classes == ("Car", "Pedestrian", "Misc")
    assert frame.difficulty.tolist() == [0, 2, 0]
    assert frame.ignore_classes == ("Car", "Pedestrian")
    np.testing.assert_array_equal(frame.labelled_region.dont_care, [[10, 20, 30, 40]])
    assert frame.labelled_region.size == (1242, 375)
    item = PointCloudSet([frame], CLASSES, crop_to_view=True)[0]
    assert item["labels"].tolist() == [0, 1]
    assert item["ignore_labels"].tolist() == [0, 1]
    assert 0 < len(item["points"]) < 1500
    x, y, z = item["boxes"][0, :3].tolist()
    assert (round(x), round(y)) == (15, -2)
    assert -1.5 < z < -0.5
    assert (item["boxes"][:, 0] > 5).all()


def test_splits_and_pictures(tmp_path):
    for number in ("000001", "000002", "000007"):
        write_set(tmp_path, number)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("000007\n000001\n")
    assert [f.name for f in read_kitti(tmp_path)] == ["000001", "000002", "000007"]
    assert [f.name for f in read_kitti(tmp_path, "val")] == ["000007", "000001"]
    assert [f.name for f in read_kitti(tmp_path, ["000002"])] == ["000002"]
    with pytest.raises(DataError, match=r"`split` must be .* got 'test'"):
        read_kitti(tmp_path, "test")
    with pytest.raises(DataError, match=r"000009\.bin"):
        read_kitti(tmp_path, ["000009"])
    (tmp_path / "training" / "image_2").mkdir()
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1224).to_bytes(4, "big") + (370).to_bytes(4, "big")
    (tmp_path / "training" / "image_2" / "000001.png").write_bytes(head)
    assert read_kitti(tmp_path, ["000001"])[0].labelled_region.size == (1224, 370)


@pytest.mark.parametrize(
    ("height", "occluded", "truncated", "level"),
    [(41, 0, 0.15, 0), (40, 0, 0, 1), (41, 1, 0, 1), (26, 0, 0.3, 1), (41, 2, 0.5, 2), (26, 0, 0.4, 2), (25, 0, 0, -1),
     (41, 3, 0, -1), (41, 0, 0.51, -1)],
)  # fmt: skip
def test_difficulty(height, occluded, truncated, level):
    assert (
        kitti_difficulty(entry(rectangle=(0, 100, 50, 100 + height), occluded=occluded, truncated=truncated)) == level
    )


def test_malformed_files_name_line_and_key(tmp_path):
    write_set(tmp_path, entries=[entry()])
    label = tmp_path / "training" / "label_2" / "000003.txt"
    label.write_text(line(entry()) + "\nCar 0 0 0 1 2\n")
    with pytest.raises(DataError, match=r"000003\.txt:2"):
        read_label(label)
    label.write_text(line(entry()) + " 0.75\n")
    assert read_label(label)[0].score == 0.75
    calib = tmp_path / "training" / "calib" / "000003.txt"
    text = calib.read_text()
    calib.write_text(text.replace("R0_rect", "R1_rect"))
    with pytest.raises(DataError, match="has no R0_rect"):
        read_calib(calib)
    calib.write_text(text.replace("P2: 700.0", "P2:"))
    with pytest.raises(DataError, match="P2 must be"):
        read_calib(calib)
    calib.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_kitti(tmp_path)
    with pytest.raises(DataError, match="folder not found"):
        read_kitti(tmp_path / "none")


def test_real_boxes_come_back_from_the_camera_frame(shared_dir):
    """Rotation is taken from the observation angle that the label has, so that it is independent of the box."""
    off = []
    for path in sorted((shared_dir / "data" / "lidar").glob("kitti_training_*.json")):
        content = json.loads(path.read_text())
        calib = {key: np.array(value) for key, value in content["calib"].items()}
        forward = velo_to_rect(calib["R0_rect"], calib["Tr_velo_to_cam"])
        points = np.fromfile(path.with_suffix(".bin"), "<f4").reshape(-1, 4)
        for given in content["boxes"]:
            x, y, z, length, width, height, heading = given["box"]
            cx, cy, cz = (forward @ [x, y, z, 1])[:3]
            rotation = given["alpha"] + np.arctan2(cx, cz)
            thing = entry(given["class"], (cx, cy + height / 2, cz), rotation, size=(height, width, length))
            box = camera_to_lidar([thing], calib)[0]
            np.testing.assert_allclose(box[:6], given["box"][:6], atol=1e-3)
            off.append(abs(np.angle(np.exp(1j * (box[6] - heading)))))
            assert (
                abs(len(points_in_box(points, box)) - given["num_points_inside"])
                <= 0.15 * given["num_points_inside"] + 2
            )
    assert len(off) == 27
    assert np.median(off) < 0.007
    assert max(off) < 0.04  # angles of near, truncated cars fit their boxes less
