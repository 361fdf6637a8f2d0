"""Every forgery config: builds its model, trains a step on data from its own pipeline, and is measured, all tiny."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmseg")

from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

from visionattn.cli import main
from visionattn.engine.config.build import quiet
from visionattn.engine.config.checks import find_problems
from visionattn.engine.config.load import load_config

CONFIGS = REPO / "configs" / "forgery"
FILES = sorted(CONFIGS.rglob("*.py"))
SMALL = dict(
    noise_dims=(8, 16, 20, 32), noise_depths=(1, 1, 1, 1), image_dims=(8, 16, 20, 32), image_depths=(2, 1, 1, 1),
    embed_dim=16,
)  # fmt: skip


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which data/ is as the configs say."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    mask = np.zeros((72, 96), np.uint8)
    mask[20:50, 30:70] = 255

    def photo() -> np.ndarray:
        return rng.integers(0, 255, (72, 96, 3), dtype=np.uint8)

    for index in range(3):
        write(home / f"data/photos/train/{index}.png", photo())
        write(home / f"data/forged/val/images/{index}.png", photo())
        for split in ("training", "validation", "testing"):
            write(home / f"data/brgen/{split}/Au/COCO_{index}.png", photo())
            write(home / f"data/brgen/{split}/Tp/MAT_Stuff_COCO_{index}.png", photo())
            write(home / f"data/brgen/{split}/Gt/MAT_Stuff_COCO_{index}_mask.png", mask)
        for split in ("train", "test"):
            write(home / f"data/casia/{split}/Au/Au_{index}.jpg", photo())
            write(home / f"data/casia/{split}/Tp/Sp_{index}.jpg", photo())
            write(home / f"data/casia/{split}/Gt/Sp_{index}.png", mask)
        write(home / f"data/forgery/Columbia/Tp/{index}.png", photo())
        write(home / f"data/forgery/Columbia/Gt/{index}_gt.png", mask)
    write(home / "data/forged/val/masks/1.png", mask)
    shutil.copytree(home / "data/forged/val", home / "data/forged/cut")
    (home / "data/forgery/cat.json").write_text(json.dumps([["ManiDataset", "Columbia"]]))
    return home


def shrink(config) -> None:
    if "backbone" in config.model:
        config.model.backbone.update(pretrained=None, depths=(1, 1, 1, 1))
        if "biformer" in config.model.backbone.model_name:
            config.model.backbone.num_regions = 4
    elif "net" in config.model:
        config.model.net.update(SMALL)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = (64, 96)
            if step["type"] == "mmseg.RandomCrop":
                step["crop_size"] = (64, 64)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_config_trains_and_is_measured(file, home, monkeypatch):
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    config = load_config(file)
    shrink(config)
    assert find_problems(config) == []
    init_default_scope(config.default_scope)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        train = Runner.build_dataloader(config.train_dataloader, seed=0)
        val = Runner.build_dataloader(config.val_dataloader, seed=0)
        model = MODELS.build(config.model)
        optim = build_optim_wrapper(model, config.optim_wrapper)
        model.train()
        losses = model.train_step(next(iter(train)), optim)
        assert {"loss_mask", "loss_label"} <= set(losses)
        assert all(torch.isfinite(v).all() for v in losses.values())
        model.eval()
        evaluator = Evaluator(config.test_evaluator)
        evaluator.dataset_meta = val.dataset.metainfo
        for batch in val:
            with torch.no_grad():
                evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    figures = evaluator.evaluate(len(val.dataset))
    assert {"pixel_f1", "pooled_f1", "image_accuracy"} <= set(figures)


def test_the_commands_from_training_to_inference(home, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(home)
    file = CONFIGS / "synthetic" / "forgery-net_dinat-pico_synthetic.py"
    options = [
        "train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2",
        "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False", "val_dataloader.num_workers=0",
        "val_dataloader.persistent_workers=False", "test_dataloader.num_workers=0",
        "test_dataloader.persistent_workers=False", "model.backbone.depths=(1,1,1,1)",
    ]  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", str(file), "--work-dir", str(run), "--cfg-options", *options]) == 0, capsys.readouterr().err
    status = main(["test", str(run), "--out", str(tmp_path / "test"), "--robustness", "resize"])
    assert status == 0, capsys.readouterr().err
    ladder = json.loads((tmp_path / "test" / "robustness.json").read_text())["levels"]
    assert [row["kind"] for row in ladder] == ["clean", *["resize"] * 4]
    assert all(0 <= row["image_auc"] <= 1 for row in ladder)
    assert len((tmp_path / "test" / "robustness.csv").read_text().splitlines()) == 6
    assert (tmp_path / "test" / "robustness.png").stat().st_size > 1000
    images = sorted((home / "data/forged/val/images").iterdir())
    for extra in ([], ["--tile", "64", "--tta"]):
        assert main(["infer", *map(str, images), "--run", str(run), "--out", str(out), *extra]) == 0
        found = capsys.readouterr()
        assert "forged:" in found.out, found.err
        records = json.loads((out / "predictions.json").read_text())["images"]
        for record, image in zip(records, images, strict=True):
            heat = cv2.imread(str(out / record["heatmap"]), cv2.IMREAD_UNCHANGED)
            mask = cv2.imread(str(out / record["mask"]), cv2.IMREAD_UNCHANGED)
            assert heat.shape == mask.shape == (72, 96)
            assert set(np.unique(mask)) <= {0, 255}
            assert abs((mask > 0).mean() - record["forged_share"]) < 1e-4
            assert ((heat >= 32768) == (mask > 0)).mean() > 0.99
            assert record["forged"] == (record["forgery_score"] > 0.5)
            assert (out / f"{image.stem}.png").is_file()
