"""The timm adapter."""

import importlib.util
import re

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmengine")

from visionattn.backbones import load_official
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.errors import CheckpointError, ConfigError
from visionattn.openmmlab import Backbone

CNN = {"model_name": "resnet10t", "channels": (8, 8, 16, 16), "stem_width": 8}


def test_found_from_both_registries():
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    from mmdet.registry import MODELS as DET
    from mmseg.registry import MODELS as SEG

    for registry in (DET, SEG):
        assert registry.get("visionattn.Backbone") is Backbone
        assert isinstance(registry.build({"type": "visionattn.Backbone", **CNN}), Backbone)


def test_outputs_are_timms():
    torch.manual_seed(0)
    backbone = Backbone(**CNN, out_indices=(1, 2, 4)).eval()
    model = timm.create_model(
        "resnet10t", features_only=True, out_indices=(1, 2, 4), channels=(8, 8, 16, 16), stem_width=8
    )
    model.load_state_dict(backbone.net.state_dict())
    x = torch.randn(2, 3, 50, 70)
    ours, theirs = backbone(x), model.eval()(x)
    assert isinstance(ours, tuple)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(a.is_contiguous() for a in ours)
    assert backbone.num_features == [a.shape[1] for a in ours]
    assert backbone.strides == [4, 8, 32]
    assert not backbone.out_norm


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3)])
def test_dense_norms_of_our_transformers(indices):
    torch.manual_seed(0)
    backbone = Backbone("dinat_pico", out_indices=indices).eval()
    assert backbone.out_norm
    norms = {n.split(".")[0] for n, _ in backbone.named_parameters() if n.startswith("norm")}
    assert norms == {f"norm{i}" for i in indices}
    plain = Backbone("dinat_pico", out_indices=indices, out_norm=False).eval()
    plain.net.load_state_dict(backbone.net.state_dict())
    x = torch.randn(1, 3, 64, 96)
    for normed, raw, stride in zip(backbone(x), plain(x), backbone.strides, strict=True):
        assert normed.shape == (1, raw.shape[1], 64 // stride, 96 // stride)
        expected = nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-5).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-5)
        assert normed.is_contiguous()


def test_models_whose_blocks_end_with_a_norm_have_no_output_norms_unless_asked():
    assert not Backbone("dinat_nano").out_norm
    assert Backbone("dinat_nano", out_norm=True).out_norm


def test_dense_norms_of_biformer(tmp_path):
    """They have another name in its checkpoints, and another epsilon."""
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "head_dim": 8}
    torch.manual_seed(0)
    source = Backbone("biformer_tiny", **small)
    for level in range(4):
        norm = getattr(source, f"norm{level}")
        assert norm.eps == 1e-6
        nn.init.normal_(norm.weight)
    published = {k.removeprefix("net."): v for k, v in source.state_dict().items()}
    published = {
        re.sub(r"^(model\.)?(norm(\d))?", lambda m: f"extra_norms.{m[3]}" if m[3] else "", k): v
        for k, v in published.items()
    }
    assert "extra_norms.2.weight" in published
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in published.items()}}, tmp_path / "dense.pth")
    x = torch.randn(1, 3, 70, 90)
    by_path = Backbone("biformer_tiny", pretrained=str(tmp_path / "dense.pth"), **small).eval()
    by_call = Backbone("biformer_tiny", **small).eval()
    report = by_call.load_official({"state_dict": {f"backbone.{k}": v for k, v in published.items()}})
    assert report.dropped == {}
    assert report.settings["padding"] == "'input', as the published model"
    for a, b in zip(by_path(x), by_call(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(by_call.norm2.weight, source.norm2.weight)
    classifier = timm.create_model("biformer_tiny", **small).state_dict()
    assert "norm0.weight" in by_call.load_official(classifier).missing


@pytest.mark.parametrize(
    ("stages", "frozen", "free"),
    [
        (-1, [], ["conv1", "layer1", "layer4"]),
        (0, ["conv1", "bn1"], ["layer1", "layer2"]),
        (2, ["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4"]),
        (4, ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"], []),
    ],
)
def test_frozen_stages(stages, frozen, free):
    backbone = Backbone(**CNN, out_indices=(1, 2, 3, 4), frozen_stages=stages)
    assert backbone.train() is backbone, "train() gives the module"
    for name, parameter in backbone.net.named_parameters():
        top = name.split(".")[0]
        if top in frozen:
            assert not parameter.requires_grad, name
        if top in free:
            assert parameter.requires_grad, name
    for name, module in backbone.net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            top = name.split(".")[0]
            assert module.training == (top not in frozen), name
    assert backbone.training
    before = [b.clone() for n, b in backbone.net.named_buffers() if n.split(".")[0] in frozen]
    out = backbone(torch.randn(2, 3, 64, 64))
    after = [b for n, b in backbone.net.named_buffers() if n.split(".")[0] in frozen]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "no statistics are updated"
    if free:
        out[-1].sum().backward()
        assert all((p.grad is None) == (not p.requires_grad) for p in backbone.net.parameters())


def test_frozen_stages_of_a_transformer():
    backbone = Backbone("dinat_pico", frozen_stages=1).train()
    free = {n for n, p in backbone.named_parameters() if p.requires_grad}
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("levels.0" in n or "patch_embed" in n for n in frozen)
    assert not any("levels.0" in n or "patch_embed" in n for n in free)
    assert any("levels.1" in n for n in free)
    assert "norm0.weight" in free


def test_norm_eval():
    backbone = Backbone(**CNN, norm_eval=True).train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert backbone.net.layer3.training


def test_init_weights_keeps_what_timm_made():
    torch.manual_seed(0)
    backbone = Backbone(**CNN)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_pretrained_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10, channels=(8, 8, 16, 16), stem_width=8)
    checkpoints.write({"state_dict": model.state_dict()}, tmp_path / "cls.pth")
    backbone = Backbone(**CNN, pretrained=str(tmp_path / "cls.pth"))
    assert torch.equal(backbone.net.layer3[0].conv1.weight, model.layer3[0].conv1.weight)
    checkpoints.write({"w": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: does not match the backbone resnet10t"):
        Backbone(**CNN, pretrained=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model_name": "dinat_mimi"}, "did you mean dinat_mini"),
        ({"model_name": "resnet10t", "out_indices": (1, 9)}, "a level that the model does not have"),
        ({"model_name": "resnet10t", "out_indices": (2, 1)}, "must be ascending integers"),
        (
            {"model_name": "resnet10t", "drop_path_rat": 0.1},
            "takes no argument 'drop_path_rat'; did you mean drop_path_rate",
        ),
        ({"model_name": "resnet10t", "frozen_stages": 7}, "must be -1 to 3, the number of stages in use"),
        ({"model_name": "resnet10t", "checkpoint_path": "a.pth"}, "use pretrained=PATH"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(**kwargs)


def test_published_detection_backbone(shared_dir, tmp_path):
    """Names, output norms and dilations of the published dense DiNAT, read from a detector's checkpoint."""
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    fixture = torch.load(shared_dir / "parity/dinat/dinat_dense_detection_mini_256x320.pt", weights_only=True)
    weights = {f"backbone.{k}": v for k, v in fill.official_state_dict(fixture).items()}
    checkpoints.write({"state_dict": weights}, tmp_path / "det.pth")
    dilations = fixture["meta"]["dilations"]
    backbone = Backbone("dinat_mini", dilations=dilations, pretrained=str(tmp_path / "det.pth")).eval()
    assert sum(p.numel() for p in backbone.parameters()) == fixture["n_params"]
    with torch.no_grad():
        outputs = backbone(fill.fixture_input(fixture))
    for out, expected in zip(outputs, fixture["outputs"], strict=True):
        assert (out - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def _fixture(shared_dir, name):
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return fill, torch.load(shared_dir / "parity" / name, weights_only=True)


def _davit(fixture, **kwargs):
    architecture = {k: v for k, v in fixture["meta"]["cfg"].items() if k != "num_classes"}
    return Backbone("davit_tiny", **architecture, **kwargs)


@pytest.mark.parametrize("way", ["pretrained", "load_official"])
def test_published_dense_davit(shared_dir, tmp_path, way):
    """timm's own DaViT under a detector's checkpoint: outputs, exact number of parameters, input gradient."""
    fill, fixture = _fixture(shared_dir, "davit/davit_dense_tinycfg.pt")
    weights = {f"backbone.{k}": v for k, v in fill.official_state_dict(fixture).items()}
    weights["bbox_head.norms.0.weight"] = torch.ones(1)
    if way == "pretrained":
        checkpoints.write({"state_dict": weights}, tmp_path / "det.pth")
        backbone = _davit(fixture, pretrained=str(tmp_path / "det.pth")).eval()
    else:
        backbone = _davit(fixture).eval()
        report = load_official(backbone, {"state_dict": weights})
        assert report.dropped == {"bbox_head.norms.0.weight": "not part of the backbone"}
        assert report.missing == {}
        assert len(report.loaded) == len(fixture["shapes"]) == len(backbone.state_dict())
    assert sum(p.numel() for p in backbone.parameters()) == fixture["n_params"]
    x = fill.fixture_input(fixture).requires_grad_()
    outputs = backbone(x)
    for out, expected in zip(outputs, fixture["outputs"], strict=True):
        assert (out - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    fill.loss(outputs).backward()
    bound = 1e-4 * max(1.0, fixture["grad_input"].abs().max().item())
    assert (x.grad - fixture["grad_input"]).abs().max() <= bound


def test_classifier_into_a_dense_davit_without_mlps():
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 1, 1), "ffn": False}
    source = timm.create_model("davit_large_window12_384", window_size=7, **small).eval()
    backbone = Backbone("davit_tiny", out_indices=(0, 2), **small).eval()
    report = load_official(backbone, source.state_dict())
    assert set(report.missing) == {f"norm{level}.{part}" for level in (0, 2) for part in ("weight", "bias")}
    x = torch.randn(1, 3, 45, 60)
    for ours, raw in zip(backbone(x), source.forward_intermediates(x, [0, 2])[1], strict=True):
        expected = nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-5).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_official_checkpoint_into_a_built_backbone(shared_dir):
    fill, fixture = _fixture(shared_dir, "dinat/dinat_dense_detection_mini_256x320.pt")
    weights = fill.official_state_dict(fixture)
    backbone = Backbone("dinat_mini", dilations="detection", out_indices=(1, 3))
    report = load_official(backbone, {"model": {f"backbone.{k}": v for k, v in weights.items()}})
    assert set(report.dropped) == {f"backbone.norm{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert torch.equal(backbone.norm3.weight, weights["norm3.weight"])
    again = Backbone("dinat_mini", dilations="detection", out_indices=(1, 3))
    report = load_official(again, {"state_dict": {f"backbone.{k}": v for k, v in backbone.state_dict().items()}})
    assert (report.dropped, report.missing) == ({}, {})
