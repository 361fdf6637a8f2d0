"""Every super-resolution config: trains a step and is measured, on tiny images in the layout that it names."""

import json

import cv2
import numpy as np
import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")

from visionattn.cli import main
from visionattn.engine.config.load import load_config
from visionattn.heads.super_resolution.imresize import downscale

FILES = sorted((REPO / "configs/super_resolution").rglob("*.py"))
SMALL = [
    "model.net.dim=8", "model.net.qk_dim=8", "model.net.mlp_dim=8", "model.net.heads=2", "model.net.centers=[4]",
    "model.net.group_sizes=[16]", "model.net.windows=[8]", "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False", "val_dataloader.num_workers=0", "test_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False", "test_dataloader.persistent_workers=False",
    "train_dataloader.batch_size=2", "train_cfg.max_iters=1", "train_cfg.val_interval=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which data/ is as the configs say."""
    home = tmp_path_factory.mktemp("home")
    image = cv2.resize(np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8), (264, 264))

    def write(path, values):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(home / path), values)

    write("data/DIV2K/DIV2K_train_HR/0001.png", image)
    write("data/SR/Set5/HR/baby.png", image[:48, :60])
    write("data/photos/train/a.png", image)
    write("data/photos/heldout/b.png", image[:48, :60])
    for scale in (2, 3, 4):
        write(f"data/DIV2K/DIV2K_train_LR_bicubic/X{scale}/0001x{scale}.png", downscale(image, scale))
        write(f"data/SR/Set5/LR_bicubic/X{scale}/babyx{scale}.png", downscale(image[:48, :60], scale))
    return home


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_trains_and_is_measured(file, home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    assert main(["train", str(file), "--work-dir", str(tmp_path), "--cfg-options", *SMALL]) == 0
    options = ["--cfg-options", *SMALL]
    assert main(["test", str(file), str(tmp_path / "iter_1.pth"), "--out", str(tmp_path / "t"), *options]) == 0
    metrics = json.loads((tmp_path / "t/results.json").read_text())["metrics"]
    assert 5 < metrics["PSNR_Y"] < 80


def test_published_schedules():
    for scale, total, halved in (
        (2, 800_000, [300_000, 500_000, 650_000, 700_000, 750_000]),
        (3, 250_000, [125_000, 200_000, 225_000, 237_500]),
        (4, 250_000, [125_000, 200_000, 225_000, 237_500]),
    ):
        config = load_config(f"catanet_x{scale}_4xb16-{total // 1000}k_div2k")
        assert config.train_cfg.max_iters == total
        assert config.param_scheduler.milestones == halved
        assert config.optim_wrapper.optimizer.to_dict() == {"type": "Adam", "lr": 2e-4, "betas": (0.9, 0.99)}
        assert config.train_dataloader.batch_size == 16
        assert config.train_dataloader.dataset.pipeline[0].patch_size == 64
        datasets = [config[f"{split}_dataloader"].dataset.scale for split in ("train", "val", "test")]
        assert [config.model.scale, *datasets] == [scale] * 4
