"""Point clouds as a dataset of mmengine."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.registry import DATASETS, TRANSFORMS

from visionattn.errors import ConfigError, DataError
from visionattn.heads.lidar.data.folders import read_point_folder
from visionattn.heads.lidar.data.frames import PointCloudSet
from visionattn.heads.lidar.data.object_database import cut_objects
from visionattn.heads.lidar.mmlab.data import PackPoints

PACK = [dict(type="visionattn.PackPoints")]


def build(scans, pillars, **changes):
    options = dict(
        type="visionattn.PointCloudDataset", data_root=str(scans), data_prefix=dict(pts="train"),
        metainfo=dict(classes=pillars.CLASSES), pipeline=PACK,
    )  # fmt: skip
    return DATASETS.build({**options, **changes})


def test_items_are_those_of_the_folder(scans_dir, pillars):
    dataset = build(scans_dir, pillars)
    assert len(dataset) == 24
    assert dataset.metainfo["classes"] == pillars.CLASSES
    for number in (0, 7):
        item, (points, boxes) = dataset[number], pillars.make_scan(number)
        assert torch.equal(item["inputs"]["points"], torch.from_numpy(points))
        truth = item["data_samples"].gt_instances
        assert torch.allclose(truth.boxes, torch.tensor([b["box"] for b in boxes]), atol=1e-5)
        assert truth.labels.tolist() == [pillars.CLASSES.index(b["class"]) for b in boxes]
        assert item["data_samples"].metainfo["img_path"].endswith(f"{number:03d}.bin")
    empty = build(scans_dir, pillars, data_prefix=dict(pts="val"))[7]["data_samples"]
    assert empty.gt_instances.boxes.shape == (0, 7)


def test_each_nth_frame(scans_dir, pillars):
    dataset = build(scans_dir, pillars, every=5, offset=2)
    assert [dataset.get_data_info(i)["img_path"][-7:] for i in range(len(dataset))] == [
        f"{n:03d}.bin" for n in range(2, 24, 5)
    ]
    with pytest.raises(ConfigError, match=r"`every` must be at least 1 .* got 0"):
        build(scans_dir, pillars, every=0)


def test_what_is_not_as_it_says(scans_dir, pillars, tmp_path):
    with pytest.raises(ConfigError, match=r"`layout` must be one of .* got 'kity'"):
        build(scans_dir, pillars, layout="kity")
    with pytest.raises(ConfigError, match="`metainfo` must have `classes`"):
        build(scans_dir, pillars, metainfo=None)
    with pytest.raises(DataError, match=r"has a class of \['bus'\]; its classes are \['long', 'square'\]"):
        build(scans_dir, pillars, metainfo=dict(classes=("bus",)))
    with pytest.raises(DataError, match="contains no point cloud"):
        build(tmp_path, pillars, data_prefix=dict(pts=""))


def test_kitti_and_its_classes(tmp_path, pillars):
    for name in ("velodyne", "calib", "label_2"):
        (tmp_path / "training" / name).mkdir(parents=True)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("000003\n")
    np.array([[10, 0, -1, 0.5], [12, 1, -1, 0.5]], np.float32).tofile(tmp_path / "training/velodyne/000003.bin")
    (tmp_path / "training/calib/000003.txt").write_text(
        "P2: 700 0 600 0 0 700 180 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )
    (tmp_path / "training/label_2/000003.txt").write_text(
        "Car 0.00 0 -1.57 500 150 600 250 1.5 1.6 4.0 0 1.7 12 -1.57\n"
    )
    dataset = build(tmp_path, pillars, layout="kitti", ann_file="ImageSets/train.txt", metainfo=None, data_prefix=None)
    assert dataset.metainfo["classes"] == ("Car", "Pedestrian", "Cyclist")
    sample = dataset[0]["data_samples"]
    assert sample.gt_instances.boxes[0].tolist() == pytest.approx([12, 0, -0.95, 4, 1.6, 1.5, 0], abs=0.02)
    assert sample.metainfo["labelled_region"] is not None
    again = sample.to(torch.device("cpu")).to_dict()
    assert again["labelled_region"].sees(np.array([[12.0, 0, 0]])).tolist() == [True]


def test_augmentation_is_a_function_of_numpys_state(scans_dir, pillars):
    steps = [
        dict(type="visionattn.PointFlip"), dict(type="visionattn.PointRotation"),
        dict(type="visionattn.PointScaling"), dict(type="visionattn.PointTranslation", deviation=0.2),
        dict(type="visionattn.PointDrop"), dict(type="visionattn.PointShuffle"),
        dict(type="visionattn.PointRangeFilter", point_cloud_range=pillars.RANGE, least_points=5),
    ]  # fmt: skip
    dataset = build(scans_dir, pillars, pipeline=steps + PACK)
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(dataset[3]["inputs"]["points"])
    assert torch.equal(results[0], results[1])
    assert results[0].shape != results[2].shape or not torch.equal(results[0], results[2])


def test_pasted_objects_come_from_the_file(scans_dir, pillars, tmp_path):
    frames = PointCloudSet(read_point_folder(scans_dir / "train"), pillars.CLASSES)
    cut_objects(frames).save(tmp_path / "objects.npz")
    paste = dict(type="visionattn.PasteObjects", database=str(tmp_path / "objects.npz"), up_to=dict(long=9), turn=True)
    np.random.seed(0)
    more = build(scans_dir, pillars, pipeline=[paste, *PACK])[0]["data_samples"].gt_instances
    plain = build(scans_dir, pillars)[0]["data_samples"].gt_instances
    assert (more.labels == 0).sum() > (plain.labels == 0).sum()
    assert (more.labels == 1).sum() == (plain.labels == 1).sum()
    with pytest.raises(DataError, match="is not an object database"):
        TRANSFORMS.build({**paste, "database": str(tmp_path / "none.npz")})


def test_velocity_and_unlabelled_frames_are_packed():
    none = np.zeros((0, 7), np.float32)
    item = {"points": np.zeros((4, 5)), "boxes": none, "labels": np.zeros(0, np.int64), "velocity": none[:, :2]}
    packed = PackPoints().transform(item)
    assert packed["inputs"]["points"].dtype == torch.float32
    assert packed["data_samples"].gt_instances.velocity.shape == (0, 2)
    assert "gt_instances" not in PackPoints().transform({"points": np.zeros((4, 5))})["data_samples"]


def test_ignored_boxes_reach_the_sample(scans_dir, pillars, tmp_path):
    points, boxes = pillars.make_scan(0)
    points.tofile(tmp_path / "a.bin")
    boxes[0]["ignore"] = True
    (tmp_path / "a.json").write_text(json.dumps({"columns": list("xyzi"), "boxes": boxes}))
    sample = build(tmp_path, pillars, data_prefix=dict(pts=""))[0]["data_samples"]
    assert len(sample.gt_instances) == len(boxes) - 1
    assert sample.metainfo["ignore_boxes"].shape == (1, 7)


def test_check(scans_dir, pillars, tmp_path):
    dataset = build(scans_dir, pillars, data_prefix=dict(pts="val"))
    frames = dataset.frames.frames
    empty = sum(not frame.classes for frame in frames)
    boxes = sum(len(frame.classes) for frame in frames)
    assert dataset.check().startswith(f"{len(frames)} frames, {boxes} boxes; {empty} frame")
    some = build(scans_dir, pillars, metainfo=dict(classes=["long", "bus"])).check()
    assert " of square not used" in some
    assert some.endswith("none of bus")
    points = np.full((2, 4), np.nan, np.float32)
    (tmp_path / "b.json").write_text('{"boxes": [{"class": "long", "box": [1, 1, 1, 1, 1, 1, 0]}]}')
    for content, message in ((b"", "is missing or empty, as 1 of 1"), (points.tobytes(), "no point with finite")):
        (tmp_path / "b.bin").write_bytes(content)
        with pytest.raises(DataError, match=message):
            build(tmp_path, pillars, data_prefix=dict(pts="")).check()
    (tmp_path / "b.bin").write_bytes(np.ones((2, 4), np.float32).tobytes())
    (tmp_path / "b.json").write_text('{"boxes": []}')
    with pytest.raises(DataError, match="none of the 1 frames has labeled boxes"):
        build(tmp_path, pillars, data_prefix=dict(pts="")).check()
