"""Every config in configs/: builds its model, trains a step on data from its own pipeline, and is measured, all tiny.

The published configs are shrunk by `shrink`, and by that alone: random weights, one block per level, images and crops
an eighth in size, few proposals. Widths, necks, heads, optimizers and pipelines stay as they are.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.cli import main
from visionattn.data.samples import build_digit_scenes
from visionattn.openmmlab.build import quiet
from visionattn.openmmlab.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
CUSTOM = [path for path in FILES if "custom_data" in path.read_text()]
PUBLISHED = [path for path in FILES if path not in CUSTOM and path.parent.parent.name != "forgery"]
HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return build_digit_scenes(tmp_path_factory.mktemp("digits") / "samples", train=8, test=2, size=128)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/coco and data/ade20k are as `visionattn data` describes them."""
    from mmdet.datasets import CocoDataset

    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    coco, ade = home / "data/coco", home / "data/ade20k/ADEChallengeData2016"
    categories = [{"id": i, "name": name} for i, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
    (coco / "annotations").mkdir(parents=True)
    for split, ade_split in (("train2017", "training"), ("val2017", "validation")):
        images, annotations = [], []
        for folder in (coco / split, ade / "images" / ade_split, ade / "annotations" / ade_split):
            folder.mkdir(parents=True)
        for number in (1, 2):
            picture = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            cv2.imwrite(str(coco / split / f"{number}.jpg"), picture)
            cv2.imwrite(str(ade / "images" / ade_split / f"{number}.jpg"), picture)
            labels = np.repeat(np.repeat(rng.integers(0, 151, (6, 8), dtype=np.uint8), 16, 0), 16, 1)
            cv2.imwrite(str(ade / "annotations" / ade_split / f"{number}.png"), labels)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
            for x, y, w, h in ((8, 8, 48, 40), (40, 24, 80, 64)):
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(rng.integers(1, 81)),
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [outline],
                })  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return home


def dicts(part: Any) -> Iterator[dict]:
    """Every dict in a config, from the outside in."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from dicts(item)


def eighth(size: Any) -> Any:
    return type(size)(map(eighth, size)) if isinstance(size, (list, tuple)) else size // 8


def shrink(config: Any) -> None:
    """One block per level, no pretrained weights, small images, few proposals and queries."""
    backbone = config.model.backbone
    backbone.update(pretrained=None, depths=(1, 1, 1, 1))
    if "num_regions" in backbone:
        backbone.num_regions = 4
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for step in dicts(loader.dataset.pipeline):
            for key in ("scale", "scales", "crop_size"):
                if key in step:
                    step[key] = eighth(step[key])
    for part in dicts(config.model):
        if part.get("type") == "RandomSampler":
            part["num"] = 32
        if "nms_pre" in part:
            part["nms_pre"] = 100
        if "max_per_img" in part:
            part["max_per_img"] = min(part["max_per_img"], 50)
    if config.model.type == "DINO":
        config.model.num_queries = 20
        config.model.encoder.num_layers = config.model.decoder.num_layers = 1


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_published_config_trains_and_predicts(file, home, monkeypatch):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    config = load_config(file)
    full = config.to_dict()["model"]["backbone"]
    assert full["pretrained"] is True, "the published schedules start from ImageNet weights"
    shrink(config)
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        val = Runner.build_dataloader(config.val_dataloader, seed=0)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        optim = build_optim_wrapper(model, config.optim_wrapper)
        for scheduler in config.param_scheduler:
            PARAM_SCHEDULERS.build(dict(scheduler), default_args={"optimizer": optim})
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}
        decay = {id(p): group["weight_decay"] for group in optim.param_groups for p in group["params"]}
        if config.optim_wrapper.get("paramwise_cfg"):
            kept = [n for n, p in model.backbone.named_parameters() if "norm" in n or n.endswith("rpb")]
            own = dict(model.backbone.named_parameters())
            assert kept
            assert {decay[id(own[n])] for n in kept} == {0.0}
        for group in optim.param_groups:
            group["lr"] = 1e-3  # the warm-up's first rate is too small to see
        model.train()
        losses = model.train_step(next(iter(train)), optim)
        assert all(torch.isfinite(value).all() for value in losses.values())
        after = dict(model.named_parameters())
        assert any(n.startswith("backbone") and not torch.equal(v, after[n]) for n, v in before.items())
        model.eval()
        evaluator = Evaluator(config.val_evaluator)
        evaluator.dataset_meta = val.dataset.metainfo
        with torch.no_grad():
            batch = next(iter(val))
            evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
        evaluator.evaluate(len(val.dataset))


@pytest.mark.parametrize("file", CUSTOM, ids=lambda path: path.stem)
def test_custom_config_trains_and_predicts(file, digits, tmp_path, capsys):
    options = [
        f"custom_data.root={digits}",
        "custom_data.train_ann=instances_train.json",
        "custom_data.val_ann=instances_test.json",
        "custom_data.train_img=images/train",
        "custom_data.val_img=images/test",
        "train_cfg.max_iters=1",
        "train_cfg.val_interval=1",
        "train_dataloader.batch_size=2",
    ]
    run = tmp_path / "run"
    status = main(["train", str(file), "--work-dir", str(run), "--cfg-options", *options])
    assert status == 0, capsys.readouterr().err
    images = sorted((digits / "images" / "test").iterdir())
    out = tmp_path / "out"
    status = main(["infer", *map(str, images), "--run", str(run), "--out", str(out), "--score-thr", "0"])
    assert status == 0, capsys.readouterr().err
    content = json.loads((out / "predictions.json").read_text())
    assert len(content["images"]) == len(images)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_is_at_most_two_hops_deep(file):
    def depth(path: Path) -> int:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "_base_":
                bases = ast.literal_eval(node.value)
                bases = [bases] if isinstance(bases, str) else bases
                return 1 + max(depth((path.parent / base).resolve()) for base in bases)
        return 0

    assert depth(file) <= 2
