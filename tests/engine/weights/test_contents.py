"""What checkpoints contain besides the weights of a model: averaged copies, prefixes, values that are not numbers."""

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmdet")

from mmengine.registry import MODELS

import visionattn.openmmlab  # noqa: F401
from visionattn.backbones import load_official
from visionattn.engine.compat import install
from visionattn.engine.compat.pretrained import load_pretrained
from visionattn.engine.weights import convert, fit
from visionattn.errors import CheckpointError

install()
SMALL = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}


@pytest.mark.parametrize(("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_of_timm_and_deit(raw, averaged, tmp_path):
    model = nn.Conv2d(1, 2, 3)
    state = {name: torch.full_like(value, 5) for name, value in model.state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    report = fit(model, {raw: zeros, averaged: state}, "a.pth")
    assert bool((model.weight == 5).all())
    assert report.lines() == [f"a.pth: loaded 2 tensors of {averaged}, the averaged weights"]
    assert str(report).startswith(report.lines()[0])
    assert fit(model, {raw: zeros, averaged: {}}, "a.pth").lines() == []
    assert float(model.weight.detach().abs().max()) == 0
    torch.save({raw: zeros, averaged: state}, tmp_path / "a.pth")
    assert load_pretrained(model, str(tmp_path / "a.pth")).averaged == averaged
    classifier = timm.create_model("dinat_mini", **SMALL, num_classes=4)
    state = {name: value + 1 for name, value in classifier.state_dict().items()}
    report = load_official(classifier, {raw: {n: v * 0 for n, v in state.items()}, averaged: state})
    assert torch.equal(classifier.head.weight, state["head.weight"])
    assert f"of {averaged}, the averaged weights" in str(report)


class Detector(nn.Module):
    """Names as those of a detector; `OTHER` are those of another one."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or nn.Linear(3, 4)
        self.neck = nn.Linear(4, 4)
        self.roi_head = nn.ModuleDict({"bbox_head": nn.Linear(4, 2)})


OTHER = {"neck.convs.0.weight": torch.zeros(2), "decode_head.psp_modules.0.weight": torch.zeros(3)}


def small_backbone() -> nn.Module:
    return MODELS.build({"type": "visionattn.Backbone", "model_name": "dinat_mini", **SMALL})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite(value, dtype):
    model = Detector()
    state = {f"module.{n}": v.clone().to(dtype) for n, v in model.state_dict().items()}
    state["module.neck.weight"][1, 2] = value
    before = model.neck.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"a\.pth: neck\.weight contains values that are NaN or infinite"):
        fit(model, {"state_dict": state}, "a.pth")
    with pytest.raises(CheckpointError, match=r"neck\.weight contains values that are NaN"):
        convert(model, {"state_dict": state})
    assert torch.equal(model.neck.weight, before)


def test_values_that_are_finite_but_have_a_large_sum_or_are_not_used():
    model = Detector()
    model.register_buffer("mask", torch.full((2,), -float("inf")))
    state = {n: v.clone() for n, v in model.state_dict().items()}
    state["neck.weight"] = torch.full((4, 4), 3e38)
    assert len(fit(model, {"state_dict": state, "optimizer": {"x": torch.tensor(float("nan"))}}, "a.pth").loaded) == 7


def test_official_weights_that_are_not_finite():
    model = timm.create_model("dinat_mini", **SMALL, num_classes=4)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    name = "levels.1.blocks.0.attn.rpb"
    state[name][0] = float("nan")
    with pytest.raises(CheckpointError, match=rf"{name} contains values that are NaN"):
        load_official(model, {"model": state})
    assert model.get_parameter(name).isfinite().all()


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "module.detector.model."])
def test_prefix_of_the_whole_model(prefix):
    model = Detector(small_backbone())
    state = {n.replace("backbone.net.model.", "backbone."): v + 1 for n, v in model.state_dict().items()}
    report = fit(model, {"state_dict": {f"{prefix}{n}": v for n, v in state.items()}}, "a.pth")
    assert len(report.loaded) == len(state)
    assert torch.equal(model.neck.weight, state["neck.weight"])
    kept = prefix.removeprefix("module.")
    assert report.renamed[f"{kept}neck.weight"] == "neck.weight"
    assert report.renamed[f"{kept}backbone.levels.0.blocks.0.attn.rpb"].startswith("backbone.net.model.levels.0.")


def refused(model: nn.Module, state: dict, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        fit(model, state, "file.pth", **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 410
    return str(caught.value)


def test_remedies():
    model = Detector(small_backbone())
    state = {n.replace("backbone.net.model.", "backbone."): v for n, v in model.state_dict().items()}
    body = {n: v for n, v in state.items() if n.startswith("backbone.")}
    text = refused(model, {"state_dict": {**body, **OTHER}})
    assert text.endswith(". Use the config that it was trained with")
    assert "only a backbone" not in text
    classifier = timm.create_model("dinat_mini", **SMALL, num_classes=4).state_dict()
    for found in (body, classifier, {n.removeprefix("backbone."): v for n, v in body.items()}):
        text = refused(model, {"model": found}, finetune=True)
        assert "It has only a backbone, which model.backbone.pretrained=FILE loads, as does" in text
        assert "--from FILE" in text
        assert "Use the config" not in text
    other = timm.create_model("nat_mini", **{**SMALL, "depths": (1, 1, 1, 1)}, num_classes=4).state_dict()
    assert refused(model, {"model": other}).endswith("It has only a backbone, which is not that of the model")
    other = {"patch_embed.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}
    assert refused(model, other).endswith("It has only a backbone, which is not that of the model")


def test_long_messages_are_shortened():
    model = Detector()
    state = {f"{part}.{'x' * 60}": torch.zeros(1) for part in ("backbone", "neck", "roi_head", "decode_head")}
    text = refused(model, {"state_dict": state})
    assert "neck: 2 of 2 tensors do not match and 1 in the file are unknown" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"a\.pth: contains no tensors$"),
        ({"state_dict": {}, "meta": {}}, r"contains no tensors in state_dict$"),
        ({"net": {"w": torch.zeros(1)}, "epoch": 3}, "contains no tensors by name; its first entries are net, epoch$"),
    ],
)
def test_files_without_tensors(content, message):
    with pytest.raises(CheckpointError, match=message):
        fit(nn.Linear(1, 1), content, "a.pth", partial=True)
