"""The final outputs of the heads of ``configs/``, computed by the modules that are exported, against the test code."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visionattn.inference import Predictor
from visionattn.inference.export import network_of_model
from visionattn.inference.export.comparison import difference
from visionattn.inference.export.deformable import replace_deformable
from visionattn.inference.export.metadata import metadata
from visionattn.inference.options import ExportOptions

ROOT = Path(__file__).resolve().parents[3]
runtime = pytest.importorskip("onnxruntime")
HEADS = ["faster-rcnn", "cascade-mask-rcnn", "dino", "mask2former-instance", "mask2former-panoptic",
         "mask2former-semantic", "forgery-net", "sat"]  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("export_outputs", ROOT / "benchmarks" / "export_outputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIDE, module.PROPOSALS = 96, 20
    return module


class Session:
    """A network in place of a session of ONNX Runtime, so that nothing is traced."""

    def __init__(self, network):
        self.network = network
        values = metadata(network, (1, 3, 96, 128), ("batch", "size"))
        self.properties = {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map=self.properties)

    def get_providers(self):
        return ["none"]

    def get_inputs(self):
        return [SimpleNamespace(shape=["batch", 3, "height", "width"])]

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in self.network.names]

    def get_overridable_initializers(self):
        return []

    def run(self, _, inputs):
        with torch.no_grad():
            return [output.numpy() for output in self.network(torch.from_numpy(inputs["image"]))]


@pytest.fixture
def build(benchmark, monkeypatch):
    monkeypatch.chdir(ROOT)  # for the paths of the configs
    import visionattn.openmmlab  # noqa: F401
    from visionattn.engine.compat import install

    install()
    return benchmark.build


@pytest.fixture
def compared(benchmark, tmp_path, monkeypatch):
    """A function that compares the predictions of a model with those from its final outputs."""

    def compare(loaded, images, options=ExportOptions()):  # noqa: B008  immutable
        network = network_of_model(loaded, options)
        monkeypatch.setattr(runtime, "InferenceSession", lambda *_, **__: Session(network))
        (tmp_path / "a.onnx").touch()
        options = {"score_thr": 0.1, "batch_size": 1 if options.resize else 2}
        expected = Predictor.from_model(loaded, **options)(images)
        return benchmark.compare(expected, Predictor.from_onnx(tmp_path / "a.onnx", **options)(images))

    return compare


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 9, 12, generator=generator)
    found = torch.nn.functional.interpolate(coarse, (90, 120), mode="bicubic").clamp(0, 1).mul(255).byte()
    found = list(found.permute(0, 2, 3, 1).numpy())
    return [*found, np.ascontiguousarray(found[0][:77, :64])]


@pytest.mark.parametrize("head", HEADS)
def test_head(head, build, compared, images):
    row = compared(build(head, images[0]), images)
    assert row["bounds"] == "yes", str(row)
    if any(part in head for part in ("rcnn", "dino", "instance")):
        assert row["detections"] > 10


@pytest.mark.parametrize("head", ["mask2former-instance", "mask2former-panoptic", "forgery-net", "cam", "sat"])
def test_programs_that_resize(head, build, compared, images):
    """Images of blocks of 2x2 equal pixels, which are halved without rounding."""
    from mmengine.registry import DefaultScope

    from visionattn.engine.model import _array_pipeline

    loaded = build(head, images[0])
    dataset = loaded.cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    kept = [step for step in dataset.pipeline if not step["type"].endswith("Resize")]
    dataset.pipeline = [kept[0], {"type": "mmcv.Resize", "scale_factor": 0.5}, *kept[1:]]
    with DefaultScope.overwrite_default_scope(loaded.cfg.get("default_scope", "mmengine")):
        loaded._pipelines = {1.0: _array_pipeline(loaded.cfg, head, 1.0)}
    doubled = [image.repeat(2, 0).repeat(2, 1) for image in images]
    row = compared(loaded, doubled, ExportOptions(resize=True))
    if head in ("cam", "sat"):  # the map is interpolated twice, which moves the box
        assert 0 < row["heat"] < 0.02, str(row)
        assert row["score"] < 1e-4, str(row)
    else:
        assert row["bounds"] == "yes", str(row)


def test_queries_of_dino_with_probabilities_of_one(build, compared, images):
    """They are chosen by logits, which differ."""
    loaded = build("dino", images[0])
    loaded.model.bbox_head.cls_branches[loaded.model.decoder.num_layers].bias.data += 30
    assert compared(loaded, images)["bounds"] == "yes"


def test_reference_points_of_the_encoder_are_those_of_mmdet():
    from visionattn.engine.compat import install

    install()
    from mmdet.models.layers import DeformableDetrTransformerEncoder as Encoder

    layer = {
        "self_attn_cfg": {"embed_dims": 8, "num_heads": 2, "num_levels": 2},
        "ffn_cfg": {"embed_dims": 8, "feedforward_channels": 8},
    }
    encoder = Encoder(num_layers=1, layer_cfg=layer)
    shapes, ratios = [(3, 5), (2, 4)], torch.ones(2, 2, 2)
    expected = encoder.get_encoder_reference_points(torch.tensor(shapes), ratios, "cpu")
    replace_deformable(torch.nn.ModuleList([encoder]))
    torch.testing.assert_close(encoder.get_encoder_reference_points(shapes, ratios, "cpu"), expected)


def test_scores_of_matched_boxes_are_compared():
    values = [torch.tensor([[[0.0, 0, 5, 5]]]), torch.tensor([[0.9]]), torch.tensor([[1]]), torch.tensor([[0.5]])]
    names = ["boxes", "scores", "labels", "class_scores"]
    assert difference(names, values, values) == 0
    assert difference(names, values, [*values[:3], torch.tensor([[0.4]])]) == pytest.approx(0.1)


def test_isolated_pixels_of_a_map_count_less():
    one = torch.ones(1, 100, 100)
    other = one.clone()
    other[0, 3, 5] = 1.005
    assert difference(["map"], [one], [other]) == pytest.approx(5e-4, rel=1e-3)
    other[0, :, 5] = 1.005  # a column
    assert difference(["map"], [one], [other]) == pytest.approx(5e-3, rel=1e-3)
    assert difference(["score"], [torch.ones(2)], [torch.tensor([1, 1.005])]) == pytest.approx(5e-3, rel=1e-3)
