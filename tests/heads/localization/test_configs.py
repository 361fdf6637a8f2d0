"""The configs of configs/localization: each trains a step on tiny data of its own layout, predicts and is measured."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.engine.config.build import quiet
from visionattn.engine.config.load import load_config
from visionattn.heads.localization.samples import build_single_digits

FILES = sorted((REPO / "configs/localization").rglob("*.py"))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/ is as the configs expect it."""
    home = tmp_path_factory.mktemp("home")
    build_single_digits(home / "data/single-digits", train=6, val=3, test=3)
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 10:60] = 255
    for name in ("CUB", "ILSVRC", "OpenImages"):
        root = home / "data" / name
        for split in ("train", "val"):
            folder = root / "metadata" / split
            folder.mkdir(parents=True)
            (root / "images" / split).mkdir(parents=True)
            (root / "masks" / split).mkdir(parents=True)
            ids = [f"{split}/{number}.jpg" for number in range(4)]
            for image_id in ids:
                cv2.imwrite(str(root / "images" / image_id), picture)
                cv2.imwrite(str((root / "masks" / image_id).with_suffix(".png")), mask)
            tail = "{0}.png," if name == "OpenImages" else "10,20,60,40"
            rows = {
                "image_ids": ids,
                "class_labels": [f"{image_id},{number * 30}" for number, image_id in enumerate(ids)],
                "image_sizes": [f"{image_id},80,60" for image_id in ids],
                "localization": [f"{i},{tail.format(i.removesuffix('.jpg'))}" for i in ids],
            }
            for key, lines in rows.items():
                (folder / f"{key}.txt").write_text("\n".join(lines) + "\n")
    for split in ("train", "val"):  # of the config for custom data
        rows = []
        for name in map(str, range(10)):
            (home / "data/folders" / split / name).mkdir(parents=True)
            cv2.imwrite(str(home / "data/folders" / split / name / "0.png"), picture)
            rows.append(f"{name}/0.png,10,20,60,40")
        (home / "data/folders" / split / "boxes.csv").write_text("\n".join(rows) + "\n")
    return home


def shrink(config) -> None:
    """Random weights and few narrow blocks; 64 pixels for 224."""
    backbone = config.model.backbone
    if config.model.type in ("visionattn.SAT", "visionattn.DCAL"):
        backbone.update(pretrained=None, embed_dim=24, num_heads=2, depth=3)
    elif "pretrained" in backbone:
        backbone.update(pretrained=None, depths=(1, 1, 1, 1))
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            for key in ("scale", "crop_size"):
                if key in step and step[key][0] > 64:
                    step[key] = (64, 64) if step[key][0] in (224, 448) else (72, 72)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_trains_and_predicts(file, home, monkeypatch):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    config = load_config(file, {"custom_data.root": "data/folders"} if file.stem.endswith("_custom") else {})
    assert config.model.num_classes in (10, 100, 200, 1000)
    if not file.stem.endswith(("_digits", "_custom")):
        assert config.model.backbone.pretrained is True
    shrink(config)
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        val = Runner.build_dataloader(config.val_dataloader, seed=0)
        model = MODELS.build(config.model)
        optim = build_optim_wrapper(model, config.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.train()
    losses = model.train_step(next(iter(train)), optim)
    names = {"loss_cls", "loss_area", "loss_norm"} if "sat" in file.stem else {"loss_cls"}
    names = {"loss_sa", "loss_glca", "loss_pwca"} if "dcal" in file.stem else names
    assert names < set(losses)
    assert all(torch.isfinite(value).all() for value in losses.values())
    after = dict(model.named_parameters())
    assert all(
        not torch.equal(before[n], after[n])
        for n in before
        if n.startswith(("sat.head", "head.classifier.b", "dcal.glca_head"))
    )
    model.eval()
    evaluator = Evaluator(config.val_evaluator)
    evaluator.dataset_meta = val.dataset.metainfo
    with torch.no_grad():
        for batch in val:
            samples = model.val_step(batch)
            evaluator.process(data_samples=samples, data_batch=batch)
    metrics = evaluator.evaluate(len(val.dataset))
    assert samples[0].pred_scores.shape == (config.model.num_classes,)
    wanted = {"PxAP", "Top1", "Top5"} if "openimages" in file.stem else {"MaxBoxAccV2", "Top1Loc", "Top5Loc", "Top1"}
    assert wanted <= set(metrics)
    assert all(0 <= value <= 100 for value in metrics.values())
