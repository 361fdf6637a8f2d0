"""``train --data``: what is chosen from a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")

import visionattn.openmmlab  # noqa: F401  adds the jobs
from visionattn.engine.auto.plan import Plan, Wishes, merged, plan_training
from visionattn.engine.config.checks import check_config
from visionattn.engine.config.load import load_config
from visionattn.errors import ConfigError, DataError
from visionattn.inference.job import jobs


@pytest.fixture(autouse=True)
def on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def picture(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)


def coco(root: Path, splits: dict[str, int], *, size=(640, 480), sides=(40, 120), masks=(), classes=None) -> Path:
    """Write images with one object of each side; ``masks`` are the indices of the objects with a polygon."""
    names = [f"class{i}" for i in range(len(sides))] if classes is None else classes
    for split, count in splits.items():
        images, annotations = [], []
        for number in range(1, count + 1):
            name = f"{split}{number}.png"
            picture(root / "images" / split / name, size)
            images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            for index, side in enumerate(sides):
                found = {
                    "id": len(annotations) + 1, "image_id": number, "category_id": index % len(names) + 1,
                    "bbox": [5, 5, side, side], "area": side * side, "iscrowd": 0,
                }  # fmt: skip
                corners = [5, 5, 5 + side, 5, 5 + side, 5 + side, 5, 5 + side]
                annotations.append(found | ({"segmentation": [corners]} if index in masks else {}))
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        root.mkdir(parents=True, exist_ok=True)
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def plan(root: Path, **wishes) -> Plan:
    return plan_training(root, jobs(), Wishes(**wishes))


def row(made: Plan, what: str) -> str:
    return next(f"{value}; {why}" for name, value, why in made.rows if name == what)


def test_the_size_follows_the_smallest_class(tmp_path):
    small = plan(coco(tmp_path / "small", {"train": 4, "val": 2}))
    width, height = small.options["scale"]
    assert 20 <= 40 * width / 640 <= 28
    assert height / width == pytest.approx(480 / 640, abs=0.02)
    first_anchor = 8 * small.options["model.bbox_head.anchor_generator.octave_base_scale"]
    assert 1 <= first_anchor / (40 * width / 640) <= 2
    large = plan(coco(tmp_path / "large", {"train": 4, "val": 2}, sides=(200, 300)))
    assert large.options["scale"] < small.options["scale"]
    assert large.options["model.bbox_head.anchor_generator.octave_base_scale"] == 8


def test_the_plan_is_a_config_that_has_the_classes_and_the_schedule(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 20, "val": 2}), epochs=10)
    config = load_config(made.config, made.options)
    check_config(config)
    assert config.model.bbox_head.num_classes == 2
    assert config.train_dataloader.batch_size * config.train_cfg.max_iters == pytest.approx(10 * 20, abs=8)
    assert config.param_scheduler[-1].end == config.train_cfg.max_iters
    assert config.test_pipeline[1].scale == made.options["scale"]
    assert config.test_dataloader.dataset.pipeline[1].scale == made.options["scale"]
    assert config.train_cfg.val_interval <= config.train_cfg.max_iters
    assert config.default_hooks.checkpoint.save_best == "coco/bbox_mAP"


def test_very_large_images_with_tiny_objects_stay_small(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 1, "val": 1}, size=(4000, 3000), sides=(12, 12)))
    assert max(made.options["scale"]) <= 640
    assert any("hardly be found" in why for _, _, why in made.rows)


def test_masks_of_very_large_images_fit_into_memory(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 1, "val": 1}, size=(4000, 3000), sides=[600] * 150, masks=range(150)))
    limit = made.options["model.test_cfg.rcnn.max_per_img"]
    assert 150 <= limit <= 200
    assert limit * 4000 * 3000 < 3e9


def test_tiny_images_are_enlarged_at_most_fourfold(tmp_path):
    assert (
        max(plan(coco(tmp_path / "in", {"train": 2, "val": 2}, size=(64, 64), sides=(9, 20))).options["scale"]) == 256
    )


@pytest.mark.parametrize(
    ("masks", "asked", "task", "ignored"),
    [
        ((), None, "detection", 0),
        ((0, 1), None, "instance", 0),
        ((0,), None, "instance", 4),
        ((0, 1), "detection", "detection", 0),
        ((0,), "detection", "detection", 0),
    ],
)
def test_boxes_and_masks(tmp_path, masks, asked, task, ignored):
    made = plan(coco(tmp_path / "in", {"train": 4, "val": 2}, masks=masks), task=asked)
    assert row(made, "task").startswith(task)
    config = load_config(made.config, made.options)
    annotations = json.loads(Path(config.train_dataloader.dataset.ann_file).read_text())["annotations"]
    assert sum(a["iscrowd"] for a in annotations) == ignored
    notes = [value for name, value, _ in made.rows if name == "note"]
    assert notes[:1] == ([f"{ignored} of 8 objects have no mask: ignored in training"] if ignored else [])


def test_instance_segmentation_needs_masks(tmp_path):
    with pytest.raises(DataError, match="0 of 8 objects have masks; `task` instance requires instance masks"):
        plan(coco(tmp_path / "in", {"train": 4, "val": 2}), task="instance")
    with pytest.raises(DataError, match="`task` semantic requires index masks"):
        plan(tmp_path / "in", task="semantic")
    with pytest.raises(ConfigError, match="`task` must be one of detection, instance, localization, semantic, got 'x'"):
        plan(tmp_path / "in", task="x")


def test_the_classes_of_the_user_are_used(tmp_path):
    root = coco(tmp_path / "in", {"train": 4, "val": 2}, sides=(12, 120), classes=["small", "large"])
    made = plan(root, cfg_options=["custom_data.classes=[large]"])
    assert row(made, "classes") == "1; large"
    assert made.options["scale"] < plan(root).options["scale"]
    config = load_config(made.config, made.options)
    assert config.model.bbox_head.num_classes == 1
    assert config.train_dataloader.dataset.metainfo.classes == ("large",)


def test_validation_images_are_drawn(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 3}))
    assert row(made, "images").startswith("train 2, val 1")


def test_one_image_is_also_the_validation_image(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 1}))
    assert row(made, "images").startswith("train 1, val 1")
    assert "validated on the training images" in row(made, "note")
    config = load_config(made.config, made.options)
    assert config.val_evaluator.ann_file == config.train_dataloader.dataset.ann_file


def test_a_folder_with_validation_images_only_is_divided(tmp_path):
    assert row(plan(coco(tmp_path / "in", {"valid": 5})), "images").startswith("train 4, val 1")


def test_no_objects(tmp_path):
    with pytest.raises(DataError, match="none of the 4 training images has an object"):
        plan(coco(tmp_path / "in", {"train": 4, "val": 2}, sides=(), classes=["a"]))


def test_classes_without_objects_are_named(tmp_path):
    made = plan(coco(tmp_path / "in", {"train": 4, "val": 2}, sides=(40,), classes=["a", "b"]))
    assert "no training image has an object of b" in row(made, "note")
    assert load_config(made.config, made.options).model.bbox_head.num_classes == 2


def test_of_two_formats_coco_is_used(tmp_path):
    root = coco(tmp_path / "in", {"train": 4, "val": 2})
    (root / "x.xml").write_text("<annotation><filename>train1.png</filename></annotation>")
    made = plan(root)
    assert made.options["custom_data.format"] == "coco"
    assert "also has annotations in the format voc" in row(made, "note")


def test_a_model_of_the_same_classes_is_not_the_start(tmp_path):
    other = plan(coco(tmp_path / "other", {"train": 4, "val": 2}, masks=(0, 1)))
    assert other.start_from == "nuclei"
    same = plan(coco(tmp_path / "same", {"train": 4, "val": 2}, masks=(0, 1), classes=["Nucleus"]))
    assert same.start_from == "digits"
    assert "not nuclei, which may have been trained on these images" in row(same, "start from")
    assert plan(tmp_path / "same", start_from="nuclei").start_from == "nuclei"


def test_the_backbone_is_that_of_the_weights_to_start_from(tmp_path):
    root = coco(tmp_path / "in", {"train": 4, "val": 2}, masks=(0, 1))
    run = tmp_path / "run"
    run.mkdir()
    (run / "tiny.py").write_text("model = dict(type='X', backbone=dict(type='Y', model_name='resnet10t'))\n")
    torch.save({"state_dict": {}, "meta": {}}, run / "iter_1.pth")
    starts = {
        "blood-cells": "dinat_nano",
        "digits": "dinat_pico",
        "mask-rcnn_dinat-mini_3x_coco": "dinat_mini",
        "resnet18.a1_in1k": "resnet18",
        str(run): "resnet10t",
    }
    for start, backbone in starts.items():
        made = plan(root, start_from=start, task="detection")
        assert made.options["model.backbone.model_name"] == backbone
        assert start in row(made, "backbone")
    asked = plan(root, start_from="blood-cells", model="resnet18")
    assert row(asked, "backbone") == "resnet18; as asked"
    assert row(plan(root, start_from="weights.pth"), "backbone").startswith("dinat_pico; small")


@pytest.mark.parametrize(("masks", "task"), [((), "detection"), ((0, 1), "instance")])
def test_another_backbone_is_built(tmp_path, masks, task):
    from mmengine.registry import MODELS, DefaultScope

    made = plan(coco(tmp_path / "in", {"train": 4, "val": 2}, masks=masks), model="resnet18", batch=3, lr=1e-4, size=96)
    assert made.start_from is None
    config = load_config(made.config, made.options)
    assert (config.train_dataloader.batch_size, config.optim_wrapper.optimizer.lr) == (3, 1e-4)
    assert max(made.options["scale"]) == 96
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    features = model.extract_feat(torch.zeros(1, 3, 96, 96))
    assert {f.shape[1] for f in features} == {128}


def test_published_weights_in_the_cache_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    root = coco(tmp_path / "in", {"train": 4, "val": 2})
    assert row(plan(root), "backbone").startswith("dinat_pico")
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "dinat_mini.in1k.pth").write_bytes(b"")
    made = plan(root)
    assert made.options["model.backbone.model_name"] == "dinat_mini"
    assert made.start_from == str(tmp_path / "cache" / "models" / "dinat_mini.in1k.pth")
    assert made.options["model.bbox_head.feat_channels"] == 256


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"model": "dinat-minni"}, "`model` 'dinat-minni' is not a backbone .* did you mean .*dinat_mini"),
        ({"model": "vit_tiny_patch16_224"}, "`model` vit_tiny_patch16_224: has no level of stride 8"),
        ({"size": 8}, "`size` must be at least 32, got 8"),
        ({"batch": 0}, "`batch` must be at least 1, got 0"),
        ({"epochs": float("nan")}, "`epochs` must be a positive number, got nan"),
    ],
)
def test_wishes_that_cannot_be_met(tmp_path, wishes, message):
    with pytest.raises(ConfigError, match=message):
        plan(coco(tmp_path / "in", {"train": 2, "val": 1}), **wishes)


def test_folders_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in {"empty": "no annotations found", "file": "is a file", "gone": "does not exist"}.items():
        with pytest.raises(DataError, match=message):
            plan(tmp_path / name)


def test_options_of_the_user_replace_those_of_the_plan():
    options = {"max_iters": 100, "train_cfg.val_interval": 20, "scale": (1, 2)}
    assert merged(options, ["scale=(3,4)"]) == {**options, "scale": "(3,4)"}
    assert merged(options, ["max_iters=5"]) == {"scale": (1, 2), "max_iters": "5"}


def index_masks(root: Path, folder: str, count: int, highest: int) -> None:
    for number in range(count):
        name = f"{folder.replace('/', '')}{number}.png"
        picture(root / "images" / folder / name, (96, 64))
        mask = root / "masks" / folder / name
        mask.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((64, 96), np.uint8)
        values[:8] = highest  # one eighth of the pixels
        Image.fromarray(values).save(mask)


def test_index_masks_without_splits_and_names(tmp_path):
    index_masks(tmp_path / "in", "", 5, 1)
    made = plan(tmp_path / "in")
    assert row(made, "task").startswith("semantic")
    assert row(made, "images").startswith("train 4, val 1")
    config = load_config(made.config, made.options)
    check_config(config)
    assert config.model.decode_head.num_classes == 2
    lists = [
        set(Path(config[f"{split}_dataloader"].dataset.ann_file).read_text().split()) for split in ("train", "val")
    ]
    assert not lists[0] & lists[1]
    assert len(lists[0] | lists[1]) == 5
    weights = config.model.decode_head.loss_decode.class_weight
    assert weights[1] / weights[0] == pytest.approx(7**0.5, rel=0.01)  # frequencies 1/8 and 7/8


def test_masks_of_0_and_255_are_explained(tmp_path):
    index_masks(tmp_path / "in", "", 3, 255)
    with pytest.raises(DataError, match="all pixels are 0 or 255, which is ignored"):
        plan(tmp_path / "in")


def test_folders_of_classes(tmp_path):
    for split in ("train", "val"):
        for name in ("x", "y"):
            picture(tmp_path / "in" / split / name / f"{split}{name}.png", (100, 80))
    made = plan(tmp_path / "in")
    assert row(made, "task").startswith("localization")
    check_config(load_config(made.config, made.options))
