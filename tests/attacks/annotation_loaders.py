"""Sound annotation files of each kind, and the loaders that read them, for hostile files and for fuzzing."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from visionattn.data.coco import check_coco
from visionattn.data.convert import _read_voc
from visionattn.data.panoptic_check import check_panoptic
from visionattn.engine.compat.panopticapi import pq_compute
from visionattn.engine.config.custom_data import load_coco, resolve_custom_data
from visionattn.engine.config.custom_masks import read_classes
from visionattn.errors import DataError
from visionattn.heads.action.keypoints import read_points
from visionattn.heads.action.lists import read_action_list
from visionattn.heads.forgery.create.donors import FolderDonors
from visionattn.heads.forgery.sets import BalancedSets, read_json
from visionattn.heads.lidar.data.folders import read_point_file
from visionattn.heads.lidar.data.infos import read_mmdet3d_infos
from visionattn.heads.lidar.data.kitti import read_kitti
from visionattn.heads.lidar.data.layouts import known_classes
from visionattn.heads.lidar.data.nuscenes import read_nuscenes
from visionattn.heads.localization.mmlab_data import LocalizationDataset
from visionattn.io.folders import STAMP, is_current

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0,
         "segmentation": [[1, 2, 11, 2, 11, 12]]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 1,
         "segmentation": {"size": [48, 64], "counts": [1000, 72, 2000]}},
    ],
    "categories": [{"id": 1, "name": "thing"}],
}  # fmt: skip
PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [
        {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 64, 48], "area": 3072}]}],
    "categories": [{"id": 1, "name": "thing", "isthing": 1}],
}  # fmt: skip
POSE_COCO = {
    "images": [{"id": 1, "frame_id": 0}, {"id": 2, "frame_id": 1}],
    "annotations": [{"image_id": 1, "keypoints": [1, 2, 2, 3, 4, 1]}, {"image_id": 2, "keypoints": [1, 2, 2, 3, 4, 0]}],
}
KINETICS = {"data": [{"frame_index": 1, "skeleton": [{"pose": [0.1, 0.2, 0.3, 0.4], "score": [1.0, 0.5]}]}]}
SMARTHOME = {"frames": [[{"pose2d": [1, 2, 3, 4]}], []], "njts": 2}
POINTS = {
    "boxes": [{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 0.1], "difficulty": 1, "velocity_xy": [1, 2], "valid": True}],
    "columns": ["x", "y", "z", "i"],
    "intensity_max": 255,
    "frame_axes": "x right, y forward",
    "image_size": [100, 50],
    "dontcare_2d": [[1, 2, 3, 4]],
    "calib": {"P2": np.eye(3, 4).tolist(), "R0_rect": np.eye(3).tolist(), "Tr_velo_to_cam": np.eye(3, 4).tolist()},
}
INFOS = {
    "metainfo": {"dataset": "nuscenes", "categories": {"car": 0}},
    "data_list": [{
        "token": "t", "timestamp": 1.0,
        "lidar_points": {"lidar_path": "samples/LIDAR_TOP/a.bin", "num_pts_feats": 5},
        "lidar_sweeps": [{"timestamp": 0.5, "lidar_points": {"lidar_path": "b.bin", "lidar2sensor": [[1, 0, 0, 0],
            [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}}],
        "instances": [{"bbox_3d": [1, 2, 3, 4, 5, 6, 0.5], "bbox_label_3d": 0, "velocity": [1, 2],
            "bbox_3d_isvalid": True}],
    }],
}  # fmt: skip
TURN = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 0]}
NUSCENES = {
    "sensor": [{"token": "s", "channel": "LIDAR_TOP"}],
    "calibrated_sensor": [{"token": "c", "sensor_token": "s", **TURN}],
    "ego_pose": [{"token": "e", **TURN}],
    "scene": [{"token": "n", "name": "scene-1"}],
    "sample": [{"token": "p", "scene_token": "n", "timestamp": 5}],
    "sample_data": [
        {"token": "d", "sample_token": "p", "calibrated_sensor_token": "c", "ego_pose_token": "e", "is_key_frame": True,
         "filename": "samples/a.bin", "prev": "b", "timestamp": 5},
        {"token": "b", "sample_token": "", "calibrated_sensor_token": "c", "ego_pose_token": "e", "is_key_frame": False,
         "filename": "sweeps/b.bin", "prev": "", "timestamp": 4},
    ],
    "instance": [{"token": "i", "category_token": "k"}],
    "category": [{"token": "k", "name": "vehicle.car"}],
    "sample_annotation": [{"token": "a", "sample_token": "p", "instance_token": "i", "size": [1, 2, 3], "prev": "",
        "next": "", "num_lidar_pts": 4, "num_radar_pts": 1, **TURN}],
}  # fmt: skip
CLASSES = {"names": ["road", "car"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 255}
STAMPED = {"stamp": {"data": "x"}, "files": 1, "top": [STAMP]}


def dump(file: Path, document: Any) -> Path:
    """Write a document, or bytes as they are."""
    file.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return file


def load_custom_data(folder: Path, document: Any) -> Any:
    dump(folder / "train.json", document)
    block = {"root": str(folder), "train_ann": "train.json", "val_ann": "train.json", "classes": "auto"}
    dataset = {"dataset": {"type": "CocoDataset"}}
    config = Config({"model": {"num_classes": 1}, "custom_data": block, "train_dataloader": dataset})
    resolve_custom_data(config)
    return config.custom_data.classes


def draw_donors(folder: Path, document: Any) -> Any:
    donors = FolderDonors(folder, [dump(folder / "objects.json", document)])
    return [donors(np.random.default_rng(seed)) for seed in range(4)]


def load_nuscenes(folder: Path, document: Any) -> Any:
    if not isinstance(document, dict):
        raise DataError("no tables")
    (folder / "v1.0-mini").mkdir(exist_ok=True)
    for name in NUSCENES:
        file = folder / "v1.0-mini" / f"{name}.json"
        if document.get(name) != NUSCENES[name] or not file.is_file():
            dump(file, document.get(name))
    try:
        return read_nuscenes(folder)
    finally:
        for name in NUSCENES:  # the next change is of another table
            if document.get(name) != NUSCENES[name]:
                dump(folder / "v1.0-mini" / f"{name}.json", NUSCENES[name])


def load_infos(folder: Path, document: Any) -> Any:
    (folder / "infos.pkl").write_bytes(pickle.dumps(document))
    return read_mmdet3d_infos(folder / "infos.pkl")


def _points(folder: Path, document: Any) -> Any:
    (folder / "p.bin").write_bytes(bytes(160))
    dump(folder / "p.json", document)
    return read_point_file(folder / "p.bin")


def panoptic_quality(folder: Path, document: Any) -> Any:
    dump(folder / "truth.json", PANOPTIC)
    dump(folder / "found.json", document)
    pq_compute(folder / "found.json", folder / "truth.json", folder / "maps", folder / "maps")
    return pq_compute(folder / "truth.json", folder / "found.json", folder / "maps", folder / "maps")


def _balanced(folder: Path, document: Any) -> Any:
    dump(folder / "list.json", [["a.png", "Negative"]])
    return BalancedSets(dump(folder / "sets.json", document)).draw(0)


JSON: dict[str, tuple[Any, Callable[[Path, Any], Any]]] = {
    "coco": (COCO, lambda f, d: check_coco(dump(f / "c.json", d), f)),
    "load_coco": (COCO, lambda f, d: load_coco(dump(f / "c.json", d))),
    "custom_data": (COCO, load_custom_data),
    "donors": (COCO, draw_donors),
    "panoptic": (PANOPTIC, lambda f, d: check_panoptic(dump(f / "c.json", d), f, f / "maps")),
    "panoptic_quality": (PANOPTIC, panoptic_quality),
    "classes_json": (CLASSES, lambda f, d: (dump(f / "classes.json", d), read_classes({}, f))),
    "forgery_json": ([["a.png", "Negative"], ["a.png", "a.png"]], lambda f, d: read_json(dump(f / "c.json", d))),
    "forgery_json_rooted": ([["a.png", "a.png"]], lambda f, d: read_json(dump(f / "c.json", d), f)),
    "balanced_sets": ([["JsonDataset", "list.json"]], _balanced),
    "pose_coco": (POSE_COCO, lambda f, d: read_points(dump(f / "c.json", d)).shape),
    "pose_kinetics": (KINETICS, lambda f, d: read_points(dump(f / "c.json", d)).shape),
    "pose_smarthome": (SMARTHOME, lambda f, d: read_points(dump(f / "c.json", d), "smarthome").shape),
    "point_folder": (POINTS, _points),
    "nuscenes": (NUSCENES, load_nuscenes),
    "mmdet3d_infos": (INFOS, load_infos),
    "manifest": ({"classes": ["a"]}, lambda f, d: (dump(f / "manifest.json", d), known_classes("folder", f))),
    "stamp": (STAMPED, lambda f, d: (dump(f / STAMP, d), is_current(f, {"data": "x"}))),
}


def furnished(folder: Path) -> Path:
    """A folder with an image, and a map of the panoptic file."""
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    (folder / "maps").mkdir()
    Image.new("RGB", (64, 48), (1, 0, 0)).save(folder / "maps" / "a.png")
    return folder


P2 = "1 0 0 0 0 1 0 0 0 0 1 0"
WSOL = {"image_ids.txt": "a.png\n", "class_labels.txt": "a.png,0\n", "image_sizes.txt": "a.png,64,48\n",
        "localization.txt": "a.png,1,2,30,40\n"}  # fmt: skip
CALIB = f"P2: {P2}\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: {P2}\n"
LABEL = (
    "Car 0.0 0 0.1 1 2 30 40 1.5 1.6 4.0 1.0 1.5 10.0 0.1\nDontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10\n"
)
NTU = "1\n1\n72 0 0 0 0 0 0 0 0 2\n2\n" + 2 * "0.1 0.2 0.3 1 2 960.5 540.5 0 0 0 0 2\n"
VOC = (
    "<annotation><path>/x</path><object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
    "<ymax>40</ymax></bndbox></object></annotation>"
)


def _wsol(folder: Path, texts: dict[str, str]) -> Any:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return LocalizationDataset(ann_file=str(folder), test_mode=True).load_data_list()


def _kitti_texts(folder: Path, texts: dict[str, str]) -> Any:
    for part, suffix in (("velodyne", "bin"), ("calib", "txt"), ("label_2", "txt")):
        (folder / "training" / part).mkdir(parents=True, exist_ok=True)
        (folder / "training" / part / f"000000.{suffix}").write_text(texts.get(part, ""), encoding="utf-8")
    return read_kitti(folder)


def _pose_text(folder: Path, texts: dict[str, str]) -> Any:
    ((name, text),) = texts.items()
    (folder / name).write_text(text, encoding="utf-8")
    return read_points(folder / name).shape


def _action_text(folder: Path, texts: dict[str, str]) -> Any:
    (folder / "l").write_text(texts["l"], encoding="utf-8")
    return read_action_list(folder / "l")


def _voc(folder: Path, texts: dict[str, str]) -> Any:
    (folder / "a.xml").write_text(texts["a.xml"], encoding="utf-8")
    return _read_voc(folder / "a.xml", 64, 48)


TEXTS: dict[str, tuple[dict[str, str], Callable[[Path, dict[str, str]], Any]]] = {
    "localization": (WSOL, _wsol),
    "kitti": ({"calib": CALIB, "label_2": LABEL}, _kitti_texts),
    "pose_ntu": ({"a.skeleton": NTU}, _pose_text),
    "pose_csv": ({"a.csv": "frame,person,joint,x,y,score\n0,0,0,1.5,2.5,0.9\n1,0,1,1.5,2.5,0.9\n"}, _pose_text),
    "action_list": ({"l": "a.mp4,a.json,0\nb.mp4,,1\n"}, _action_text),
    "voc_xml": ({"a.xml": VOC}, _voc),
}
