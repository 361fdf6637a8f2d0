"""Prediction of enlarged images: files of all kinds, tiles, views and records."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.errors import ConfigError
from visionattn.heads.super_resolution.catanet import CATANet
from visionattn.heads.super_resolution.job import SuperResolutionJob
from visionattn.inference.file_run import Summary
from visionattn.inference.files import plan_files, predict_files
from visionattn.inference.onnx.model import RawOutput
from visionattn.inference.predictor import Predictor
from visionattn.inference.video.files import VideoReader
from visionattn.io.inputs import find_inputs

NET = {"dim": 8, "qk_dim": 8, "mlp_dim": 16, "heads": 2, "centers": (4,), "group_sizes": (16,), "windows": (8,)}


class Model:
    """A trained model without OpenMMLab: a network, or a function of images ``[B, 3, H, W]`` in [0, 1]."""

    classes, palette, category_ids, cfg, device = (), None, None, {}, torch.device("cpu")

    def __init__(self, net, scale):
        self.net, self.model = net, SimpleNamespace(scale=scale)

    @torch.inference_mode()
    def run(self, samples, scale=1.0):
        images = np.stack([sample["img"][..., ::-1] for sample in samples]).transpose(0, 3, 1, 2) / 255
        return [RawOutput(pred_image=image) for image in self.net(torch.from_numpy(images).float())]


def repeated(scale):
    return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def predictor(net, scale, **options):
    return Predictor.from_model(Model(net, scale), SuperResolutionJob, **options)


@pytest.fixture
def photo():
    coarse = np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    return cv2.resize(coarse, (96, 80), interpolation=cv2.INTER_CUBIC)


def test_one_image(photo):
    found = predictor(repeated(3), 3)(photo)
    assert (found.image == photo.repeat(3, 0).repeat(3, 1)).all()
    assert (found.scale, found.size) == (3, (240, 288))
    assert (found.rgb == found.image[..., ::-1]).all()
    assert found.draw() is found.image
    assert found.seconds > 0
    red = predictor(repeated(2), 2, channel_order="rgb")(photo)
    assert (red.rgb == photo.repeat(2, 0).repeat(2, 1)).all()
    values = predictor(lambda x: x * 4 - 1, 1)(photo)  # values outside of [0, 1] are clipped
    assert values.image.min() == 0
    assert values.image.max() == 255


@pytest.mark.parametrize(
    "options", [{"tile": 32}, {"tile": 40, "overlap": 20}, {"tta": True}, {"tile": 32, "tta": True}]
)
def test_tiles_and_views_of_a_local_model(photo, options):
    """A 3x3 convolution: the margin of the tiles hides what they do not see."""
    blur = torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", groups=3, bias=False)
    torch.nn.init.constant_(blur.weight, 1 / 9)
    expected = predictor(blur, 1)(photo).image.astype(int)
    found = predictor(blur, 1, **options)(photo).image
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.98


def test_views_are_averaged(photo):
    """A model that moves the image to the right: the eight views move it in every direction."""
    found = predictor(lambda x: x.roll(1, 3), 1, tta=True)(photo).image.astype(float)
    x = photo.astype(float)
    expected = sum(np.roll(x, step, axis) for step in (1, -1) for axis in (0, 1)) / 4
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_tiles_of_catanet(photo):
    """Groups of similar tokens depend on the rest of the image, so that tiles differ, but without a seam."""
    torch.manual_seed(0)
    net = CATANet(2, **NET).eval()
    net.blocks[0][0].initted.fill_(True)
    whole = predictor(net, 2)(photo).image.astype(float)
    tiled = predictor(net, 2, tile=48)(photo).image.astype(float)
    difference = np.abs(whole - tiled)
    assert difference.mean() < 2
    steps = np.abs(np.diff(tiled, axis=1)).mean((0, 2)) / np.abs(np.diff(whole, axis=1)).mean((0, 2)).clip(1)
    assert steps.max() < 1.5  # no column has larger steps than in the whole image


def write_inputs(folder, photo):
    folder.mkdir()
    small = photo[:12, :16]
    cv2.imwrite(str(folder / "gray.png"), small[..., 0])
    cv2.imwrite(str(folder / "deep.png"), small.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "photo.png"), small)
    rgb = Image.fromarray(small[..., ::-1])
    exif = rgb.getexif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.png", exif=exif)
    transparent = rgb.copy()
    transparent.putalpha(77)
    transparent.save(folder / "transparent.png")
    return small


@pytest.mark.parametrize("overlays", [True, False])
def test_files(tmp_path, photo, overlays):
    small = write_inputs(tmp_path / "in", photo)
    enlarger = predictor(repeated(2), 2)
    plan = plan_files(find_inputs([str(tmp_path / "in")]), tmp_path / "out")
    with pytest.warns(UserWarning, match="transparency is dropped"):
        summary = predict_files(enlarger, plan, {}, overlays=overlays)
    assert isinstance(summary, Summary)
    assert not summary.failed
    assert enlarger.job.summary(summary.tally) == "enlarged 2 times: 5 images, 0.0 megapixels"
    expected = small.repeat(2, 0).repeat(2, 1)
    images = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (tmp_path / "out").glob("*.png")}
    assert set(images) == {"gray", "deep", "photo", "turned", "transparent"}
    for name in ("deep", "photo", "transparent"):
        assert (images[name] == expected).all()
    assert (images["gray"] == expected[..., :1]).all()
    assert images["turned"].shape == (32, 24, 3)
    assert (images["turned"] == np.rot90(expected, -1)).all()
    text = (tmp_path / "out/predictions.json").read_text()
    assert '"scale": 2' in text
    assert '"enlarged_width": 32, "enlarged_height": 24' in text
    assert (tmp_path / "out/report.html").exists() == overlays


def test_video(tmp_path, photo):
    pytest.importorskip("av")
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(photo[:48, :64])
    writer.release()
    plan = plan_files(find_inputs([str(tmp_path / "v.avi")]), tmp_path / "out")
    summary = predict_files(predictor(repeated(2), 2), plan, {}, overlays=False)
    assert (summary.frames, summary.failed) == (3, [])
    with VideoReader(tmp_path / "out/v.webm", 10**6) as reader:
        assert (reader.width, reader.height) == (128, 96)


def test_options():
    with pytest.raises(ConfigError, match="`scales` is not supported for super_resolution models"):
        predictor(repeated(2), 2, scales=(0.5, 1.0))
    with pytest.raises(ConfigError, match="`opacity` is not supported"):
        predictor(repeated(2), 2, opacity=0.5)
