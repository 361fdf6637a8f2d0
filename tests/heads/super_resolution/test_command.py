"""Training, testing, inference and export of a small model by the commands."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("mmdet")

from visionattn.cli import main

TINY = [
    "max_iters=2", "train_cfg.val_interval=2", "train_dataloader.num_workers=0", "train_dataloader.batch_size=2",
    "patch_size=12", "model.net.dim=8", "model.net.qk_dim=8", "model.net.mlp_dim=8", "model.net.centers=[4]",
    "model.net.group_sizes=[16]", "model.net.windows=[8]",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photographs and a training run of two iterations."""
    place = tmp_path_factory.mktemp("sr")
    for folder, count in (("train", 3), ("heldout", 2)):
        (place / "photos" / folder).mkdir(parents=True)
        for index in range(count):
            coarse = np.random.default_rng(index).integers(256, size=(8, 10, 3), dtype=np.uint8)
            cv2.imwrite(str(place / f"photos/{folder}/{index}.png"), cv2.resize(coarse, (60, 48)))
    options = [*TINY, f"data_root={place / 'photos'}"]
    run = ["train", "catanet-small_x2_photos", "--work-dir", str(place / "run"), "--cfg-options", *options]
    assert main(run) == 0
    return place


def test_test_command(home, capsys):
    assert main(["test", str(home / "run"), "--out", str(home / "test")]) == 0
    found = json.loads((home / "test/results.json").read_text())["metrics"]
    assert set(found) == {f"{name}_Y{end}" for name in ("PSNR", "SSIM") for end in ("", "_raw", "_bicubic")}
    assert 5 < found["PSNR_Y"] < 80
    assert 0 < found["SSIM_Y"] <= 1
    assert "PSNR_Y" in capsys.readouterr().out


def test_training_goes_on(home, capsys):
    options = [*TINY, "max_iters=3", f"data_root={home / 'photos'}"]
    run = ["train", "catanet-small_x2_photos", "--work-dir", str(home / "run"), "--resume", "--cfg-options", *options]
    assert main(run) == 0
    assert (home / "run/iter_3.pth").exists()


def test_infer_and_export(home, capsys):
    image = str(home / "photos/heldout/0.png")
    common = ["--tile", "32"]
    assert main(["infer", image, "--run", str(home / "run"), "--out", str(home / "out"), *common]) == 0
    assert "enlarged 2 times: 1 image" in capsys.readouterr().out
    expected = cv2.imread(str(home / "out/0.png")).astype(int)
    assert expected.shape == (96, 120, 3)
    for name, options in (("any.onnx", ["--dynamic", "batch", "size"]), ("fixed.onnx", []), ("fixed.pt2", [])):
        file = str(home / name)
        assert main(["export", "--run", str(home / "run"), "--size", "32", "--out", file, *options]) == 0
        difference = capsys.readouterr().out.split("maximum difference from the model: ")[1].split()[0]
        assert float(difference) < 1e-4
        if name.endswith(".onnx"):
            out = home / name.replace(".", "_")
            assert main(["infer", image, "--onnx", file, "--out", str(out), *common]) == 0
            assert np.abs(cv2.imread(str(out / "0.png")) - expected).max() <= 1
    capsys.readouterr()
    assert main(["infer", image, "--onnx", str(home / "fixed.onnx"), "--out", str(home / "no")]) == 1
    assert "an image of 60x48 is larger than the size of the exported program" in capsys.readouterr().err


def test_check_and_browse(home, capsys):
    options = ["--cfg-options", *TINY, f"data_root={home / 'photos'}"]
    assert main(["check", "catanet-small_x2_photos", *options]) == 0
    assert "3 images; low-resolution images are computed" in capsys.readouterr().out
    assert main(["browse", "catanet-small_x2_photos", "--number", "2", "--out", str(home / "browse"), *options]) == 0
    assert len(list((home / "browse").glob("*.png"))) == 2


def test_published_model_by_name(home, capsys, monkeypatch, tmp_path):
    """The config of the released weights accepts their names."""
    torch = pytest.importorskip("torch")
    from visionattn.heads.super_resolution.catanet import CATANet

    torch.manual_seed(0)
    weights = CATANet(2).state_dict()
    torch.save({"params": weights}, tmp_path / "x2.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 24, 3), 90, np.uint8))
    command = ["infer", str(tmp_path / "a.png"), "--model", "catanet_x2", "--weights", str(tmp_path / "x2.pth")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert cv2.imread(str(tmp_path / "out/a.png")).shape == (40, 48, 3)
