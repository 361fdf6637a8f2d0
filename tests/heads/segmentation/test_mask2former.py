"""Mask2Former from data to results: a panoptic set is checked, learned, measured, and predicted on."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")

from visionattn.data.panoptic import id2rgb
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.load import load_config
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.launch import launch
from visionattn.engine.train.testing import test as measure
from visionattn.engine.train.train import train
from visionattn.errors import DataError
from visionattn.inference import Predictor
from visionattn.inference.analysis import Recorder

CONFIGS = REPO / "configs"
CONFIG = """
_base_ = [
    "{configs}/_base_/models/mask2former_dinat-pico_instance.py",
    "{configs}/_base_/schedules/adamw_iters.py",
    "{configs}/_base_/default_runtime.py",
]
metainfo = dict(classes=("red", "blue", "ground"), thing_classes=("red", "blue"), stuff_classes=("ground",))
classes = dict(num_things_classes=2, num_stuff_classes=1)
model = dict(
    data_preprocessor=dict(pad_seg=True),
    backbone=dict(depths=(1, 1, 1, 1)),
    panoptic_head=dict(
        num_queries=12, loss_cls=dict(class_weight=[1.0] * 3 + [0.1]),
        pixel_decoder=dict(encoder=dict(num_layers=1)), transformer_decoder=dict(num_layers=1), **classes),
    panoptic_fusion_head=classes,
    train_cfg=dict(num_points=256),
    test_cfg=dict(panoptic_on=True, max_per_image=12))
train_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadPanopticAnnotations"), dict(type="PackDetInputs")]
test_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadPanopticAnnotations"),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))]
data = dict(type="CocoPanopticDataset", data_root="{root}", ann_file="panoptic.json", metainfo=metainfo,
            data_prefix=dict(img="images", seg="maps"))
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
                        dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(pipeline=test_pipeline, test_mode=True, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoPanopticMetric", ann_file="{root}/panoptic.json", seg_prefix="{root}/maps")
test_evaluator = val_evaluator
train_cfg = dict(max_iters=30, val_interval=30)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5)]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=30))
"""


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory, coco_dir) -> Path:
    """The rectangles of the other tests with panoptic maps, things on a ground, and a config for them."""
    root = tmp_path_factory.mktemp("panoptic")
    content = json.loads((coco_dir / "train.json").read_text())
    (root / "images").mkdir()
    (root / "maps").mkdir()
    annotations = []
    for image in content["images"][:4]:
        ids = np.full((64, 64), 9)
        segments = [{"id": 9, "category_id": 3}]
        for number, box in enumerate(a for a in content["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = box["bbox"]
            ids[y : y + h, x : x + w] = 256 + number
            segments.append({"id": 256 + number, "category_id": box["category_id"]})
        for segment in segments:
            rows, columns = np.nonzero(ids == segment["id"])
            size = [int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            segment |= {"bbox": [int(columns.min()), int(rows.min()), *size], "area": len(rows), "iscrowd": 0}
        cv2.imwrite(str(root / "maps" / image["file_name"]), id2rgb(ids)[..., ::-1])
        (root / "images" / image["file_name"]).write_bytes((coco_dir / "images" / image["file_name"]).read_bytes())
        annotations.append({"image_id": image["id"], "file_name": image["file_name"], "segments_info": segments})
    kinds = [("red", 1), ("blue", 1), ("ground", 0)]
    categories = [{"id": i, "name": n, "isthing": k} for i, (n, k) in enumerate(kinds, 1)]
    whole = {"images": content["images"][:4], "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(whole))
    (root / "tiny.py").write_text(CONFIG.replace("{configs}", str(CONFIGS)).replace("{root}", str(root)))
    return root


@pytest.fixture(scope="module")
def run(panoptic):
    return train(load_config(panoptic / "tiny.py"), work_dir=panoptic / "run", seed=0)


def test_data_is_checked(panoptic):
    lines = check_data(load_config(panoptic / "tiny.py"))
    assert lines[0].startswith("train: 4 images")
    assert "2 things and 1 stuffs" in lines[0]
    config = load_config(panoptic / "tiny.py")
    config.train_dataloader.dataset.metainfo.classes = ("red", "blue", "sky")
    with pytest.raises(DataError, match="category 'ground' is not among"):
        check_data(config)
    config.train_dataloader.dataset.data_prefix.seg = "images"
    with pytest.raises(DataError, match=r"images/000\.png shows the id|is not in the map"):
        check_data(config)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "model.panoptic_head.num_things_classes=3",
            "panoptic_head.num_things_classes=3, but the dataset of train_dat",
        ),
        ("model.panoptic_fusion_head.num_stuff_classes=0", "panoptic_fusion_head.num_stuff_classes=0, but the dataset"),
        ("model.panoptic_head.loss_cls.class_weight=[1.0,0.1]", "loss_cls.class_weight has 2 values, but the dataset"),
        ("model.panoptic_head.in_channels=[32,64,128,99]", "panoptic_head.in_channels=[32, 64, 128, 99], but model.b"),
    ],
)
def test_head_that_does_not_fit(panoptic, option, expected):
    assert find_problems(load_config(panoptic / "tiny.py")) == []
    problems = find_problems(load_config(panoptic / "tiny.py", [option]))
    assert any(expected in problem for problem in problems), problems


def test_semantic_head_takes_every_map():
    config = load_config(CONFIGS / "segmentation/mask2former/mask2former_dinat-mini_8xb2-160k_ade20k-512x512.py")
    assert find_problems(config, ()) == []
    config.model.decode_head.in_channels = [64, 128, 256, 99]
    assert "decode_head.in_channels=[64, 128, 256, 99], but model.backbone has" in find_problems(config, ())[0]


def test_classes_of_own_data_reach_every_part(coco_dir):
    file = CONFIGS / "segmentation/mask2former/mask2former_dinat-pico_coco_custom.py"
    options = {f"custom_data.{k}": v for k, v in (("root", str(coco_dir)), ("train_ann", "train.json"),
                                                  ("val_ann", "val.json"))}  # fmt: skip
    config = load_config(file, options)
    for part in (config.model.panoptic_head, config.model.panoptic_fusion_head):
        assert (part.num_things_classes, part.num_stuff_classes) == (2, 0)
    assert config.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 0.1]
    assert find_problems(config) == []


def test_loss_falls(run):
    losses = [r["loss"] for r in read_records(run.work_dir) if "loss" in r]
    assert losses[-1] < 0.7 * losses[0]


def test_quality_is_measured_by_class(panoptic, run):
    assert next(iter(run.metrics)) == "PQ"
    recorder = Recorder()
    measured = measure(load_config(panoptic / "tiny.py"), run.checkpoint, panoptic / "out", recorder)
    assert measured.metrics == run.metrics
    recorder.write(panoptic / "out", measured)
    analysis = json.loads((panoptic / "out" / "analysis.json").read_text())["segments"]
    record = json.loads((panoptic / "out" / "results.json").read_text())
    rows = record["per_class"]["panoptic"]
    assert set(rows) == {"red", "blue", "ground"}
    means = np.mean([row["PQ"] for row in rows.values()])
    assert record["metrics"]["PQ"] == pytest.approx(means, abs=0.02)
    assert {name: 100 * found["PQ"] for name, found in analysis.items()} == {
        name: pytest.approx(row["PQ"], abs=0.01) for name, row in rows.items()
    }


def test_predictions_are_panoptic(panoptic, run):
    predictor = Predictor(panoptic / "tiny.py", run.checkpoint)
    assert predictor.job.name == "panoptic"
    assert predictor.model.model.panoptic_fusion_head.num_things_classes == 2
    whole = predictor(sorted((panoptic / "images").iterdir())[0])
    tiled = Predictor(panoptic / "tiny.py", run.checkpoint, tile=48, overlap=16)(whole.path)
    for prediction in (whole, tiled):
        found = prediction.panoptic
        assert found.segments.shape == prediction.semantic.shape == (64, 64)
        covered = found.segments > 0
        np.testing.assert_array_equal(prediction.semantic[covered], found.labels[found.segments[covered] - 1])
        assert (prediction.semantic[~covered] == 3).all()
        assert len(prediction.masks) == len(found.labels)


def test_two_processes_count_a_repeated_image_once(panoptic, run, tmp_path):
    """Three images in two processes: the sampler hands out one of them twice."""
    options = {
        "load_from": str(run.checkpoint),
        "optim_wrapper.optimizer.lr": 0.0,
        "train_cfg.max_iters": 1,
        "train_cfg.val_interval": 1,
        "val_dataloader.dataset.indices": 3,
        "val_dataloader.num_workers": 0,
    }
    config = str(panoptic / "tiny.py")
    train(load_config(config, options), work_dir=tmp_path / "one")
    launch({"config": config, "cfg_options": options, "work_dir": str(tmp_path / "two")}, devices=2)
    one, two = ([r["val"] for r in read_records(tmp_path / name) if "val" in r] for name in ("one", "two"))
    assert one[0]["PQ"] > 0
    assert two == one
