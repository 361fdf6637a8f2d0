"""nuScenes' tables and mmdetection3d's lists of them: a small set in their layout, driven through a known world."""

import json
import pickle

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.boxes import count_points
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.data.infos import read_mmdet3d_infos
from visionattn.heads.lidar.data.nuscenes import CATEGORIES, CLASSES, read_nuscenes
from visionattn.heads.lidar.data.nuscenes_results import ATTRIBUTES, attribute_names, result_rows, write_results
from visionattn.heads.lidar.data.sweeps import transform


def turn(angle: float) -> list[float]:
    return [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))]


MOUNT = {"rotation": turn(-np.pi / 2), "translation": [0.9, 0.0, 1.8]}  # x right, y forward, as theirs is
RNG = np.random.default_rng(0)
STANDING = RNG.uniform(-0.45, 0.45, (60, 3)) * [4, 1.8, 1.5] + [520.0, 310.0, 0.75]  # a parked car, on the map


def pose(step: int) -> dict:
    """The vehicle drives along the map's diagonal and turns slowly; 20 steps to a second."""
    return {"rotation": turn(0.6 + 0.01 * step), "translation": [500.0 + 0.4 * step, 300.0 + 0.3 * step, 0.0]}


def to_map(step: int) -> np.ndarray:
    at = pose(step)
    return transform(at["rotation"], at["translation"]) @ transform(MOUNT["rotation"], MOUNT["translation"])


def seen(step: int) -> np.ndarray:
    """The parked car's points in the sensor's frame."""
    return (np.linalg.inv(to_map(step)) @ np.column_stack([STANDING, np.ones(60)]).T).T[:, :3]


@pytest.fixture
def root(tmp_path):
    tables = {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")}
    (tmp_path / "samples" / "LIDAR_TOP").mkdir(parents=True)
    (tmp_path / "sweeps" / "LIDAR_TOP").mkdir(parents=True)
    for step in range(0, 31):  # a sample at every tenth step, sweeps between
        key = step % 10 == 0
        name = f"{'samples' if key else 'sweeps'}/LIDAR_TOP/{step:02}.pcd.bin"
        points = np.column_stack([seen(step), np.full(60, 51.0), np.full(60, 3)])
        write_points(tmp_path / name, points)
        tables["ego_pose"].append({"token": f"p{step}", "timestamp": step * 50000, **pose(step)})
        tables["sample_data"].append({
            "token": f"d{step}", "sample_token": f"s{-(-step // 10) * 10}", "ego_pose_token": f"p{step}",
            "calibrated_sensor_token": "lidar", "filename": name, "is_key_frame": key, "timestamp": step * 50000,
            "prev": f"d{step - 1}" if step else "", "next": f"d{step + 1}",
        })  # fmt: skip
        tables["sample_data"].append({
            **tables["sample_data"][-1], "token": f"c{step}", "calibrated_sensor_token": "camera", "filename": "x.jpg",
        })  # fmt: skip
        if key:
            n = step // 10
            tables["sample"].append({"token": f"s{step}", "timestamp": step * 50000, "scene_token": f"scene{n // 3}"})
            things = {
                "car": ([520.0, 310.0, 0.75], [1.8, 4.0, 1.5], 0.0, 60),
                "walker": ([510.0 + n, 300.0 - n, 0.9], [0.6, 0.8, 1.8], -np.pi / 4, 5),  # 2 m in each second, twice
                "hidden": ([505.0, 330.0, 0.9], [0.6, 0.8, 1.8], 0.0, 0),
                "dog": ([505.0, 320.0, 0.3], [0.3, 0.8, 0.5], 0.0, 5),
            }
            for thing, (place, size, angle, points_in) in things.items():
                tables["sample_annotation"].append({
                    "token": f"{thing}{n}", "sample_token": f"s{step}", "instance_token": thing, "translation": place,
                    "size": size, "rotation": turn(angle), "num_lidar_pts": points_in, "num_radar_pts": 0,
                    "prev": f"{thing}{n - 1}" if n else "", "next": f"{thing}{n + 1}" if n < 3 else "",
                })  # fmt: skip
    tables["sensor"] = [{"token": "a", "channel": "LIDAR_TOP"}, {"token": "b", "channel": "CAM_FRONT"}]
    tables["calibrated_sensor"] = [
        {"token": "lidar", "sensor_token": "a", **MOUNT}, {"token": "camera", "sensor_token": "b", **MOUNT},
    ]  # fmt: skip
    kinds = {"car": "vehicle.car", "walker": "human.pedestrian.adult", "hidden": "human.pedestrian.child",
             "dog": "animal"}  # fmt: skip
    tables["instance"] = [{"token": t, "category_token": k} for t, k in kinds.items()]
    tables["category"] = [{"token": k, "name": k} for k in kinds.values()]
    tables["scene"] = [{"token": f"scene{n}", "name": f"scene-000{n}"} for n in range(2)]
    (tmp_path / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_sweeps_of_a_standing_car_fall_on_each_other(root):
    frames = read_nuscenes(root, sweeps=10)
    assert [frame.name for frame in frames] == ["s0", "s10", "s20", "s30"]
    counts = []
    for number, frame in enumerate(frames):
        item = PointCloudSet([frame], CLASSES, columns=5).load(0)
        counts.append(len(item["points"]) // 60)
        first = item["points"][:60]
        np.testing.assert_allclose(first[:, :3], seen(number * 10), atol=1e-4)
        for part in range(1, counts[-1]):
            np.testing.assert_allclose(item["points"][part * 60 : part * 60 + 60, :3], first[:, :3], atol=1e-3)
        np.testing.assert_allclose(item["points"][:, 4], np.repeat(0.05 * np.arange(counts[-1]), 60), atol=1e-6)
        np.testing.assert_allclose(item["points"][:, 3], 0.2, rtol=1e-6)
        assert count_points(item["points"], item["boxes"][:1])[0] == 60 * counts[-1]  # the box lies on them too
    assert counts == [1, 10, 10, 10]
    assert len(PointCloudSet(read_nuscenes(root, sweeps=1), CLASSES)[2]["points"]) == 60


def test_boxes_and_velocities(root):
    frame = read_nuscenes(root)[1]
    assert frame.classes == ("car", "pedestrian")
    assert frame.ignore_classes == ("pedestrian",)  # it has no point; the dog is of no class
    np.testing.assert_allclose(frame.boxes[:, 3:6], [[4, 1.8, 1.5], [0.8, 0.6, 1.8]], rtol=1e-6)
    np.testing.assert_allclose(frame.velocity[0], 0, atol=1e-6)
    speed = np.linalg.norm(frame.velocity[1])
    assert speed == pytest.approx(2 * np.sqrt(2), rel=1e-5)
    ahead = np.array([np.cos(frame.boxes[1, 6]), np.sin(frame.boxes[1, 6])])
    np.testing.assert_allclose(frame.velocity[1] / speed, ahead, atol=1e-5)  # it walks where it looks


def test_axes_turned_forward(root):
    frame = read_nuscenes(root)[0]
    turned = PointCloudSet([frame], CLASSES, x_forward=True).load(0)
    plain = PointCloudSet([frame], CLASSES).load(0)
    vehicle = np.linalg.inv(transform(**pose(0)))
    where = (vehicle @ [520.0, 310.0, 0.75, 1])[:2] - [0.9, 0]  # ahead and left of the sensor
    np.testing.assert_allclose(turned["boxes"][0, :2], where, atol=1e-4)
    np.testing.assert_allclose(plain["boxes"][0, :2], [-where[1], where[0]], atol=1e-4)
    assert count_points(turned["points"], turned["boxes"][:1])[0] == len(turned["points"])
    np.testing.assert_allclose(turned["boxes"][0, 6], -0.6, atol=1e-5)


def change(root, table, edit):
    path = root / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    edit(rows)
    path.write_text(json.dumps(rows))


def test_attributes_racks_and_poses(root):
    names = ("pedestrian.standing", "vehicle.parked", "of another version")
    change(root, "attribute", lambda rows: rows.extend({"token": f"a{k}", "name": n} for k, n in enumerate(names)))
    change(root, "category", lambda rows: rows.append({"token": "rack", "name": "static_object.bicycle_rack"}))
    change(root, "instance", lambda rows: rows.append({"token": "rack", "category_token": "rack"}))

    def annotate(rows):
        for row in rows:
            row["attribute_tokens"] = {"car1": ["a1"], "walker1": ["a0"], "walker2": ["a2"]}.get(row["token"], [])
        rack = {"translation": [515.0, 305.0, 0.5], "size": [1.0, 3.0, 1.2], "rotation": turn(0.3)}
        rows.append({"token": "rack0", "sample_token": "s10", "instance_token": "rack", "prev": "", "next": "", **rack})

    change(root, "sample_annotation", annotate)
    frames = read_nuscenes(root)
    known = [[ATTRIBUTES[k] if k >= 0 else "" for k in frame.attributes] for frame in frames]
    assert known == [["", ""], ["vehicle.parked", "pedestrian.standing"], ["", ""], ["", ""]]
    assert [len(frame.bike_racks) for frame in frames] == [0, 1, 0, 0]
    for x_forward in (False, True):
        item = PointCloudSet(frames, CLASSES, x_forward=x_forward).labels(1)
        on_map = item["to_global"] @ [*item["bike_racks"][0, :3], 1]
        np.testing.assert_allclose(on_map[:3], [515.0, 305.0, 0.5], atol=1e-4)
        np.testing.assert_allclose(item["bike_racks"][0, 3:6], [3.0, 1.0, 1.2], rtol=1e-6)
        np.testing.assert_allclose((item["to_global"] @ [*item["ego"], 1])[:3], pose(10)["translation"], atol=1e-9)
        assert item["attributes"].tolist() == frames[1].attributes.tolist()


def test_results_in_the_submission_format_are_the_annotations(root, tmp_path):
    item = PointCloudSet(read_nuscenes(root), CLASSES, x_forward=True).labels(1)
    scores, labels = np.array([0.4, 0.9]), item["labels"]
    rows = result_rows("s10", CLASSES, item["boxes"], scores, labels, item["to_global"], item["velocity"])
    write_results(tmp_path / "results_nusc.json", {"s10": rows})
    written = json.loads((tmp_path / "results_nusc.json").read_text())
    assert written["meta"] == {f"use_{k}": k == "lidar" for k in ("camera", "lidar", "radar", "map", "external")}
    walker, car = written["results"]["s10"]  # in descending order of score
    assert (walker["detection_name"], walker["detection_score"]) == ("pedestrian", 0.9)
    assert (walker["attribute_name"], car["attribute_name"]) == ("pedestrian.moving", "vehicle.parked")
    assert walker["sample_token"] == "s10"
    for row, place, size, angle, speed in (
        (car, [520.0, 310.0, 0.75], [1.8, 4.0, 1.5], 0.0, [0, 0]),
        (walker, [511.0, 299.0, 0.9], [0.6, 0.8, 1.8], -np.pi / 4, [2, -2]),
    ):
        np.testing.assert_allclose(row["translation"], place, atol=2e-4)
        np.testing.assert_allclose(row["size"], size, atol=1e-4)
        np.testing.assert_allclose(row["velocity"], speed, atol=1e-3)
        wanted = transform(turn(angle), [0, 0, 0])
        np.testing.assert_allclose(transform(row["rotation"], [0, 0, 0]), wanted, atol=1e-4)
    many = np.repeat(item["boxes"][:1], 600, 0)
    rows = result_rows("s10", CLASSES, many, np.arange(600) / 600, np.zeros(600, int), item["to_global"])
    assert len(rows) == 500
    assert rows[0]["velocity"] == [0, 0]


def test_attributes_by_class_and_speed():
    speeds = np.array([[0.3, 0.0], [0.1, 0.1]])
    found = {name: attribute_names(CLASSES, np.array([k, k]), speeds) for k, name in enumerate(CLASSES)}
    assert found["car"] == found["trailer"] == ["vehicle.moving", "vehicle.parked"]
    assert found["bus"] == ["vehicle.moving", "vehicle.stopped"]
    assert found["bicycle"] == ["cycle.with_rider", "cycle.without_rider"]
    assert found["pedestrian"] == ["pedestrian.moving", "pedestrian.standing"]
    assert found["barrier"] == found["traffic_cone"] == ["", ""]
    assert attribute_names(("car", "tram"), np.array([0]), speeds[:1]) is None


def test_scenes(root):
    assert [frame.name for frame in read_nuscenes(root, scenes=["scene-0001"])] == ["s30"]
    (root / "val.txt").write_text("scene-0000\nscene-0777\n")
    assert len(read_nuscenes(root, scenes=root / "val.txt")) == 3
    with pytest.raises(DataError, match="none of the 1 `scenes`"):
        read_nuscenes(root, scenes=["scene-0777"])
    with pytest.raises(ValueError, match="`sweeps` must be at least 1, got 0"):
        read_nuscenes(root, sweeps=0)
    assert set(CATEGORIES.values()) == set(CLASSES)


def test_broken_tables_are_named(root):
    with pytest.raises(DataError, match="folder not found"):
        read_nuscenes(root, "v1.0-trainval")
    (root / "v1.0-test").mkdir()
    with pytest.raises(DataError, match=r"got v1\.0-mini, v1\.0-test"):
        read_nuscenes(root)
    (root / "v1.0-test").rmdir()
    path = root / "v1.0-mini" / "ego_pose.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"ego_pose\.json: has no token 'p0'"):
        read_nuscenes(root)
    path.write_text("[{")
    with pytest.raises(DataError, match=r"ego_pose\.json: is not a nuScenes table"):
        read_nuscenes(root)
    (root / "v1.0-mini" / "sensor.json").unlink()
    with pytest.raises(DataError, match=r"sensor\.json"):
        read_nuscenes(root)


def infos(root) -> dict:
    """What mmdetection3d 1.1 would write for the set."""
    data = []
    for number, frame in enumerate(read_nuscenes(root)):
        step = number * 10
        instances = [
            {"bbox_3d": b.tolist(), "bbox_label_3d": CLASSES.index(c), "velocity": v.tolist(),
             "bbox_3d_isvalid": np.bool_(True), "num_lidar_pts": np.int64(9)}
            for b, c, v in zip(frame.boxes, frame.classes, frame.velocity, strict=True)
        ]  # fmt: skip
        instances += [{**instances[0], "bbox_3d_isvalid": np.bool_(False)}, {**instances[0], "bbox_label_3d": -1}]
        sweeps = [
            {"timestamp": t * 0.05, "lidar_points": {
                "lidar_path": f"./data/nuscenes/{'samples' if t % 10 == 0 else 'sweeps'}/LIDAR_TOP/{t:02}.pcd.bin",
                "lidar2sensor": (np.linalg.inv(to_map(t)) @ to_map(step)).tolist()}}
            for t in range(step - 1, max(step - 11, -1), -1)
        ]  # fmt: skip
        data.append({
            "token": frame.name, "timestamp": step * 0.05, "instances": instances, "lidar_sweeps": sweeps,
            "lidar_points": {
                "num_pts_feats": 5, "lidar_path": f"{step:02}.pcd.bin", "lidar2ego": transform(**MOUNT).tolist(),
            },
            "ego2global": transform(**pose(step)).tolist(),
        })  # fmt: skip
    categories = {name: number for number, name in enumerate(CLASSES)} | {"animal": -1}
    return {"metainfo": {"categories": categories, "dataset": "nuscenes", "info_version": "1.1"}, "data_list": data}


def test_a_list_gives_what_the_tables_give(root):
    (root / "infos.pkl").write_bytes(pickle.dumps(infos(root)))
    for first, second in zip(read_nuscenes(root), read_mmdet3d_infos(root / "infos.pkl"), strict=True):
        a, b = (PointCloudSet([frame], CLASSES, columns=5, x_forward=True).load(0) for frame in (first, second))
        for key in ("points", "boxes", "labels", "velocity", "to_global", "ego"):
            np.testing.assert_allclose(a[key], b[key], atol=1e-3)
        assert second.ignore_classes == ("car",)


def test_lists_that_are_refused(root):
    path = root / "infos.pkl"
    content = infos(root)
    for bad, reason in (
        ({"infos": [], "metadata": {}}, "before 1.1"),
        ([1], "data_list"),
        ({**content, "metainfo": {"dataset": "kitti"}}, "layout 'kitti'"),
        ({**content, "data_list": [{"token": "a"}]}, r"data_list\.0 is malformed"),
        ({**content, "extra": pytest.raises}, "refused"),
    ):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(DataError, match=reason):
            read_mmdet3d_infos(path)
