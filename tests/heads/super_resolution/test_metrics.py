"""PSNR and SSIM."""

import math

import pytest
import torch

from visionattn.heads.super_resolution.metrics import psnr, ssim, to_luma


def test_recorded_values(shared_dir):
    files = sorted((shared_dir / "parity/catanet").glob("sr_metrics_*.pt"))
    assert files
    for file in files:
        for case in torch.load(file, weights_only=True)["cases"]:
            for name, expected in case["values"].items():
                border, luma = (int(part.split("=")[1]) for part in name.split(","))
                for kind, raw in (("pt", True), ("uint8", False)):
                    arguments = (case["sr"], case["gt"], border, bool(luma), raw)
                    assert psnr(*arguments) == pytest.approx(expected[f"psnr_{kind}"], abs=1e-4)
                    assert ssim(*arguments) == pytest.approx(expected[f"ssim_{kind}"], abs=1e-5)


def test_by_definition():
    truth = torch.zeros(3, 16, 16)
    assert psnr(truth + 10 / 255, truth, luma=False) == pytest.approx(20 * math.log10(25.5))
    assert psnr(truth + 0.4 / 255, truth, luma=False) == math.inf  # rounded to 0
    assert psnr(truth + 0.4 / 255, truth, luma=False, raw=True) < 80
    assert psnr(truth, truth, raw=True) == pytest.approx(80)
    assert psnr(truth - 1, truth) == math.inf  # clipped
    assert ssim(truth + 0.3, truth + 0.3) == pytest.approx(1)
    edge = truth.clone()
    edge[:, 0] = 1
    assert psnr(edge, truth, border=1) == math.inf
    assert float(to_luma(torch.ones(3, 1, 1))) == pytest.approx(235 / 255)
    assert float(to_luma(torch.zeros(3, 1, 1))) == pytest.approx(16 / 255)


def test_errors():
    image = torch.rand(3, 16, 16)
    with pytest.raises(ValueError, match=r"of one size, got \[3, 16, 16\] and \[3, 16, 15\]"):
        psnr(image, image[..., :15])
    with pytest.raises(ValueError, match="`border` 8 leaves no pixel of 16 x 16"):
        psnr(image, image, border=8)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 10"):
        ssim(image, image, border=3)
