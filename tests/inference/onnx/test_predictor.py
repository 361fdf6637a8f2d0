"""Exported files give the predictions of their models: through `Predictor.from_onnx`, and `infer --onnx`."""

import importlib.util
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from visionattn.errors import ConfigError, DataError, MissingDependencyError
from visionattn.inference import Predictor
from visionattn.inference.export import export_model, network_of_run
from visionattn.inference.export.comparison import match_boxes
from visionattn.inference.onnx.model import OnnxModel
from visionattn.inference.options import ExportOptions

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")), reason="needs onnx"
)


@pytest.fixture(scope="module")
def detector(mask_rcnn_run):
    """Config and checkpoint, with as many proposals as usual for the small images."""
    from visionattn.engine.model import config_for, find_run

    path, checkpoint = find_run(mask_rcnn_run)
    config = config_for(path, checkpoint)
    config.model.test_cfg.rpn.update(nms_pre=200, max_per_img=60)
    return config, checkpoint


@pytest.fixture(scope="module")
def detector_file(detector, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    network = network_of_run(*detector, ExportOptions(max_detections=20, license="CC0"))
    export_model(network, out, (96, 96), dynamic=("batch", "size"))
    return out


@pytest.fixture(scope="module")
def segmentor_file(segmentor_run, tmp_path_factory):
    from visionattn.engine.model import find_run

    out = tmp_path_factory.mktemp("onnx") / "segmentor.onnx"
    network = network_of_run(*find_run(segmentor_run), ExportOptions(uint8=True))
    export_model(network, out, (96, 96), dynamic=("batch", "size"))
    return out


@pytest.fixture(scope="module")
def images(shapes_dir):
    files = sorted((shapes_dir / "images").rglob("*.png"))[:3]
    found = [cv2.imread(str(file)) for file in files]
    return [found[0], cv2.resize(found[1], (117, 90)), found[2][:70], found[0][:, ::-1].copy()]


def same_detections(one, other):
    tensors = [[torch.from_numpy(np.asarray(x)) for x in (p.boxes, p.labels)] for p in (one, other)]
    rows, partners = match_boxes(*tensors[0], *tensors[1], 0.99)
    assert len(one) == len(other) == len(rows)
    np.testing.assert_allclose(one.scores[rows], other.scores[partners], atol=1e-3)
    for row, partner in zip(rows.tolist(), partners.tolist(), strict=True):
        union = (one.masks[row] | other.masks[partner]).sum()
        assert union == 0 or (one.masks[row] & other.masks[partner]).sum() >= 0.99 * union
    return len(rows)


def test_boxes_and_masks(detector, detector_file, images):
    """Of different sizes, and two in one batch."""
    options = {"score_thr": 0.3, "batch_size": 4}
    expected = Predictor(*detector, "cpu", **options)(images)
    given = Predictor.from_onnx(detector_file, **options)(images)
    assert sum(same_detections(a, b) for a, b in zip(expected, given, strict=True)) >= 4


def test_automatic_tiles(detector, detector_file):
    expected, given = Predictor(*detector, "cpu", tile="auto"), Predictor.from_onnx(detector_file, tile="auto")
    assert given.model.meta["image_size"] == [96, 96]
    assert given.options.tile == expected.options.tile


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (1, 90), (120, 2)], ids=str)
def test_smallest_and_longest_images(size, detector, detector_file, segmentor_run, segmentor_file):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    options = {"score_thr": 0.1}
    same_detections(Predictor(*detector, "cpu", **options)(image), Predictor.from_onnx(detector_file, **options)(image))
    expected = Predictor.from_run(segmentor_run, "cpu")(image).semantic
    given = Predictor.from_onnx(segmentor_file)(image).semantic
    assert expected.shape == given.shape == size
    assert (expected == given).mean() >= 0.99


def test_tiles_and_views(detector, detector_file, images):
    large = np.concatenate([np.concatenate([images[0], images[3]], 1)] * 2)
    for options in ({"tile": 80}, {"tta": True}):
        expected = Predictor(*detector, "cpu", score_thr=0.3, **options)(large)
        assert same_detections(expected, Predictor.from_onnx(detector_file, score_thr=0.3, **options)(large)) >= 4


def test_outputs_and_thresholds(detector_file, images):
    model = OnnxModel(detector_file, threads=1)
    assert model.outputs == ["boxes", "scores", "labels", "count", "masks"]
    batch = np.stack([images[0], images[3]])[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    found = model.infer(batch)
    assert found["boxes"].shape == (2, 20, 4)
    assert found["masks"].shape == (2, 20, 14, 14)
    for row, count in enumerate(found["count"]):
        assert (found["scores"][row, :count] > 0.05).all()
        assert not found["scores"][row, count:].any()
        assert (found["labels"][row, count:] == -1).all()
    best = found["scores"].max()
    assert model.infer(batch, score_threshold=0.99 * best)["count"].sum() == (found["scores"] > 0.99 * best).sum()
    with pytest.raises(ConfigError, match=r"`nms` is no threshold of .*; it has: score_threshold, iou_threshold"):
        model.infer(batch, nms=0.5)


def test_metadata(detector_file):
    import onnx

    stored = onnx.load(detector_file)
    about = {entry.key: entry.value for entry in stored.metadata_props}
    assert about["task"] == "instance"
    assert about["config"] == "mask_rcnn.py"
    assert about["license"] == "CC0"
    assert (about["layout"], about["color"], about["dtype"], about["pixels"]) == ("NCHW", "RGB", "float32", "0..255")
    assert json.loads(about["thresholds"]) == {"score_threshold": 0.05, "iou_threshold": 0.5}
    assert {entry.domain for entry in stored.opset_import} == {""}
    dims = [dim.dim_param or dim.dim_value for dim in stored.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]


def test_class_maps(segmentor_run, segmentor_file, images):
    expected = Predictor.from_run(segmentor_run, "cpu")(images)
    given = Predictor.from_onnx(segmentor_file)(images)
    for one, other in zip(expected, given, strict=True):
        assert (one.semantic == other.semantic).mean() >= 0.999
        assert one.draw().shape == other.draw().shape


def test_tiles_of_class_maps(segmentor_run, segmentor_file, images):
    large = np.concatenate([images[0], images[3]], 1)
    expected = Predictor.from_run(segmentor_run, "cpu", tile=80)(large).semantic
    assert (expected == Predictor.from_onnx(segmentor_file, tile=80)(large).semantic).mean() >= 0.999


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_metrics_are_those_of_the_model(kind, request, detector, segmentor_run, tmp_path):
    from visionattn.engine.model import config_for, find_run
    from visionattn.engine.train.testing import test
    from visionattn.inference.onnx.testing import OnnxProgram

    program = OnnxProgram(request.getfixturevalue(f"{kind}_file"))
    config, checkpoint = detector if kind == "detector" else find_run(segmentor_run)
    config = config if kind == "detector" else config_for(config, checkpoint)
    expected = test(config, checkpoint, tmp_path / "model").metrics
    found = test(config, program, tmp_path / "file").metrics
    assert found.keys() == expected.keys()
    assert max(expected.values()) > 0.2
    assert found == pytest.approx(expected, rel=0.01, abs=0.005)


def test_infer_without_openmmlab(detector_file, images, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), images[0])
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        "from visionattn.cli import main\n"
        f"sys.exit(main(['infer', 'a.png', '--onnx', {str(detector_file)!r}, '--provider', 'cpu', '--out', 'out']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found["model"]["providers"] == ["CPUExecutionProvider"]
    expected = Predictor.from_onnx(detector_file)(images[0])
    assert [round(entry["score"], 3) for entry in found["images"][0]["detections"]] == [
        pytest.approx(float(score), abs=2e-3) for score in expected.scores
    ]
    assert (tmp_path / "out" / "a.png").is_file()


def test_files_that_cannot_be_used(detector_file, tmp_path):
    import onnx

    stripped = onnx.load(detector_file)
    del stripped.metadata_props[:]
    onnx.save(stripped, tmp_path / "stripped.onnx")
    with pytest.raises(DataError, match=r"stripped.onnx: has no metadata 'visionattn'.*visionattn export"):
        Predictor.from_onnx(tmp_path / "stripped.onnx")
    changed = onnx.load(detector_file)
    next(p for p in changed.metadata_props if p.key == "decoding").value = "{"
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(DataError, match="'decoding' are not valid JSON"):
        Predictor.from_onnx(tmp_path / "changed.onnx")
    other = onnx.load(detector_file)
    next(p for p in other.metadata_props if p.key == "unsupported_step").value = "TenCrop"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match="its test pipeline has the step TenCrop"):
        Predictor.from_onnx(tmp_path / "other.onnx")
    first = stripped.graph.node[0]
    first.op_type, first.domain = "Fused", "com.other"
    onnx.save(stripped, tmp_path / "foreign.onnx")
    with pytest.raises(DataError, match=r"foreign\.onnx: ONNX Runtime cannot load it"):
        Predictor.from_onnx(tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(detector_file.read_bytes()[:1000])
    with pytest.raises(DataError, match="ONNX Runtime cannot load it"):
        Predictor.from_onnx(tmp_path / "broken.onnx")
    with pytest.raises(DataError, match="no such file"):
        Predictor.from_onnx(tmp_path / "gone.onnx")
    shutil.copy(detector_file, tmp_path / "a.pt2")
    with pytest.raises(ConfigError, match=r"must be a file that ends in \.onnx"):
        Predictor.from_onnx(tmp_path / "a.pt2")
    with pytest.raises(ConfigError, match=r"`provider` 'gpu' is not available .* it has: .*cpu"):
        Predictor.from_onnx(detector_file, ["gpu"])


def test_infer_with_a_file_of_another_tool_is_one_line(tmp_path, capsys):
    import onnx
    from onnx import helper

    from visionattn.cli import main

    values = [helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert main(["infer", str(tmp_path / "a.png"), "--onnx", str(tmp_path / "a.onnx"), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'a.onnx'}: has no metadata 'visionattn'")
    assert error.count("\n") == 1


def test_without_onnxruntime_the_command_is_named(detector_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'visionattn\[onnx\]'"):
        Predictor.from_onnx(detector_file)


def test_a_file_for_one_size(detector, images, tmp_path):
    network = network_of_run(*detector, ExportOptions(pasted=True, max_detections=10))
    done = export_model(network, tmp_path / "fixed.onnx", (96, 128))
    assert done.outputs[-1] == (1, 10, 96, 128)
    expected = Predictor(*detector, "cpu", score_thr=0.5)(images[0])
    given = Predictor.from_onnx(done.path, score_thr=0.5)(images[0])  # padded, and one at a time
    assert abs(len(given) - len(expected)) <= 1  # the padding changes the features near it
    assert given.masks[0].shape == images[0].shape[:2]
