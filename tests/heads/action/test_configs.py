"""The configs of configs/pose: each trains a step on a tiny set of its own layout, predicts and is measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmdet")
pytest.importorskip("cv2")

import cv2
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.engine.config.build import quiet
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.load import load_config
from visionattn.heads.action.samples import build_moving_figures

FILES = sorted((REPO / "configs/pose").rglob("*.py"))


def skeleton(kind: str, frames: int) -> str:
    """A file of keypoints as the set has it: 13 or 18 joints in JSON, 25 as NTU's text."""
    rng = np.random.default_rng(0)
    if kind == "ntu":
        joints = "\n".join(f"0 0 0 0 0 {x} {y} 0 0 0 0 2" for x, y in rng.uniform(0, 90, (25, 2)))
        return f"{frames}\n" + "\n".join([f"1\n1 0 0 0 0 0 0 0 0 2\n25\n{joints}"] * frames) + "\n"
    count = 13 if kind == "smarthome" else 18
    people = [{"pose2d": rng.uniform(0, 90, 2 * count).tolist()}]
    return json.dumps({"njts": count, "frames": [people] * frames})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/ is as the configs expect it."""
    home = tmp_path_factory.mktemp("home")
    build_moving_figures(home / "data/moving-figures", train=4, val=4, test=4)
    for name, suffix in (("smarthome", "json"), ("ntu", "skeleton"), ("nucla", "json")):
        root = home / "data" / ("ntu60" if name == "ntu" else name)
        root.mkdir(parents=True)
        writer = cv2.VideoWriter(str(root / "a.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, (96, 80))
        for _ in range(20):
            writer.write(np.random.default_rng(0).integers(0, 255, (80, 96, 3), np.uint8))
        writer.release()
        (root / f"a.{suffix}").write_text(skeleton(name, 19))
        for split in ("train", "val", "test"):
            (root / f"{split}.csv").write_text(f"a.avi,a.{suffix},1\na.avi,a.{suffix},2\n")
    return home


def shrink(config) -> None:
    """Few narrow blocks; 32 pixels for 224."""
    backbone = config.model.backbone
    if "base" in backbone.model_name:
        backbone.update(embed_dim=24, num_heads=2, depth=2, img_size=32)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            if step.get("size") == 224:
                step["size"] = 32
            if "short" in step:
                step["short"] = 36
            if isinstance(step.get("views"), int):
                step["views"] = min(step["views"], 2)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_trains_and_predicts(file, home, monkeypatch):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    config = load_config(file)
    assert find_problems(config, ("train", "val", "test")) == []
    shrink(config)
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        test = Runner.build_dataloader(config.test_dataloader, seed=0)
        model = MODELS.build(config.model)
        optim = build_optim_wrapper(model, config.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = model.train().train_step(next(iter(train)), optim)
    wanted = {"loss_cls", "loss_joint"} if "paat" in file.stem else {"loss_cls"}
    assert wanted == {name for name in losses if name.startswith("loss_")}
    assert all(torch.isfinite(value).all() for value in losses.values())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("pose_blocks" in name for name in changed) == ("paa" in file.stem)
    evaluator = Evaluator(config.test_evaluator)
    evaluator.dataset_meta = test.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for batch in test:
            evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    metrics = evaluator.evaluate(len(test.dataset))
    assert {"Top1", "MeanClass"} <= set(metrics)
    assert ("Top5" in metrics) == (config.model.num_classes > 5)
