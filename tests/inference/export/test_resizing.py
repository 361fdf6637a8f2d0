"""Programs that resize: against OpenCV, and against the predictions of the model with its own test pipeline."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch

from visionattn.errors import ConfigError
from visionattn.inference import Predictor
from visionattn.inference.export import Network, export_model, network_of_run
from visionattn.inference.export.preprocessing import apply_steps
from visionattn.inference.export.resizing import prepend_steps, resize_image
from visionattn.inference.options import ExportOptions

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")), reason="needs onnx"
)
STEPS = {
    "ratio": [{"type": "Resize", "scale": [133, 80], "keep_ratio": True}],
    "ratio of the shorter side": [{"type": "Resize", "scale": [2048, 64], "keep_ratio": True}],
    "fixed": [{"type": "Resize", "scale": [60, 40]}],
    "square": [{"type": "Resize", "scale": 48, "keep_ratio": False}],
    "factor": [{"type": "Resize", "scale_factor": [1.5, 0.7]}],
    "contrast": [{"type": "AutoContrast"}, {"type": "Resize", "scale": [100, 100], "keep_ratio": True}],
}
SHAPES = [(96, 64), (64, 96), (96, 64)]
SIZES = [(37, 91), (120, 64), (75, 75), (33, 200)]


def images():
    generator = np.random.default_rng(0)
    for height, width in SIZES:
        coarse = generator.integers(20, 200, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        noise = generator.integers(0, 9, (height, width, 3), dtype=np.uint8)
        yield cv2.resize(coarse, (width, height)) + noise


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_sizes_and_pixels_are_those_of_opencv(steps):
    for image in images():
        expected = tensor(apply_steps(image, steps))
        given = resize_image(tensor(image), steps)
        assert given.shape == expected.shape
        assert (given - expected).abs().max() <= 1
        assert (given - expected).abs().mean() < 0.2


def test_contrast_is_exact():
    for image in images():
        expected = tensor(apply_steps(image, [{"type": "AutoContrast"}]))
        torch.testing.assert_close(resize_image(tensor(image), [{"type": "AutoContrast"}]), expected, rtol=0, atol=0)
    flat = torch.full((1, 3, 4, 5), 7.0)
    torch.testing.assert_close(resize_image(flat, [{"type": "AutoContrast"}]), flat)


@needs_onnx
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_steps_in_a_program(steps):
    import onnx
    import onnxruntime
    from onnx import helper

    values = [helper.make_tensor_value_info(n, 1, ["B", 3, "h", "w"]) for n in ("image", "resized", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["resized"], ["out"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    prepend_steps(model, steps)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [value.name for value in session.get_inputs()] == ["image"]
    for image in [*images(), np.full((3, 900, 3), 9, np.uint8)]:
        (given,) = session.run(None, {"image": np.repeat(tensor(image).numpy(), 2, 0)})
        expected = resize_image(tensor(image), steps).expand(2, -1, -1, -1)
        assert given.shape == expected.shape
        change = np.abs(given - expected.numpy())
        assert change.max() <= 1  # of values that are close to .499
        assert (change > 0).mean() < 1e-3


@pytest.fixture(scope="module")
def found(shapes_dir):
    """Images of blocks of 2x2 equal pixels, which are halved without rounding."""
    files = sorted((shapes_dir / "images").rglob("*.png"))[:3]
    pixels = [cv2.resize(cv2.imread(str(file)), size) for file, size in zip(files, SHAPES, strict=True)]
    return [image.repeat(2, 0).repeat(2, 1) for image in pixels]


def configured(run):
    """The config with a test pipeline that resizes, and the checkpoint."""
    from visionattn.engine.model import config_for, find_run

    path, checkpoint = find_run(run)
    config = config_for(path, checkpoint)
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    kept = [step for step in dataset.pipeline if not step["type"].endswith("Resize")]
    dataset.pipeline = [kept[0], {"type": "mmcv.Resize", "scale": (96, 64), "keep_ratio": True}, *kept[1:]]
    return config, checkpoint


@needs_onnx
def test_boxes_and_masks_of_the_original(mask_rcnn_run, found, tmp_path):
    config, checkpoint = configured(mask_rcnn_run)
    config.model.test_cfg.rpn.update(nms_pre=60, max_per_img=20)
    network = network_of_run(config, checkpoint, ExportOptions(max_detections=10, resize=True, uint8=True))
    done = export_model(network, tmp_path / "a.onnx", (64, 96))
    assert done.dynamic == ("size",)
    expected = Predictor(config, checkpoint, "cpu", score_thr=0.3)(found)
    predictor = Predictor.from_onnx(done.path, score_thr=0.3)
    for one, other in zip(expected, predictor(found), strict=True):
        assert len(one) == len(other)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
        for a, b in zip(one.masks, other.masks, strict=True):
            assert (a & b).sum() >= 0.99 * (a | b).sum()
    assert sum(map(len, expected)) >= 3
    raw = predictor.model.infer(tensor(found[0][..., ::-1].copy()).numpy())
    assert raw["boxes"].max() > 100  # in pixels of the original
    assert 1 <= raw["count"][0] < 10
    assert raw["masks"][0, : raw["count"][0]].max() > 0.5
    assert not raw["masks"][0, raw["count"][0] :].any()  # not computed
    nothing = predictor.model.infer(tensor(found[0]).numpy(), score_threshold=1.0)
    assert nothing["count"].tolist() == [0]
    with pytest.raises(ConfigError, match=r"`scales` has no effect on .*, which resizes the images itself"):
        Predictor.from_onnx(done.path, scales=(1.0, 2.0))(found[0])


@needs_onnx
def test_maps_of_the_original(segmentor_run, found, tmp_path):
    config, checkpoint = configured(segmentor_run)
    done = export_model(network_of_run(config, checkpoint, ExportOptions(resize=True)), tmp_path / "a.onnx", (64, 96))
    expected = Predictor(config, checkpoint, "cpu")(found)
    for one, other in zip(expected, Predictor.from_onnx(done.path)(found), strict=True):
        assert one.semantic.shape == other.semantic.shape
        assert (one.semantic == other.semantic).mean() >= 0.999


def test_what_cannot_be_resized(segmentor_run, tmp_path):
    config, checkpoint = configured(segmentor_run)
    network = network_of_run(config, checkpoint, ExportOptions(resize=True))
    with pytest.raises(ConfigError, match=r"`resize` applies to \.onnx files only"):
        export_model(network, tmp_path / "a.pt2", (96, 128))
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    dataset.pipeline = [step for step in dataset.pipeline if not step["type"].endswith("Resize")]
    with pytest.raises(ConfigError, match="`resize` is not possible: the test pipeline does not resize"):
        network_of_run(config, checkpoint, ExportOptions(resize=True))


def test_networks_without_steps_are_as_before():
    image = torch.rand(1, 3, 8, 8)
    assert Network(torch.nn.Identity()).resized(image) is image
