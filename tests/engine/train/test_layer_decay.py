"""Learning rate factors by layer, against numbers written down here for one model of each family."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.optim import build_optim_wrapper

from visionattn.engine.parts.backbone import Backbone
from visionattn.engine.train.finetune.layer_decay import layer_factors
from visionattn.errors import ConfigError

ALL = (0, 1, 2, 3)
# arguments, number of layers, and (pattern of names in the timm model, layer or function of the numbers in the name)
FAMILIES = {
    "dinat_pico": (  # 2, 2, 6, 2 blocks; downsampling belongs to the last block of its level
        {"out_indices": ALL},
        13,
        [
            (r"patch_embed", 0),
            (r"levels\.(\d)\.blocks\.(\d)", lambda s, b: [1, 3, 5, 11][s] + b),
            (r"levels\.(\d)\.downsample", lambda s: [2, 4, 10][s]),
        ],
    ),
    "dinat_s_tiny": (
        {"out_indices": ALL},
        13,
        [
            (r"patch_embed", 0),
            (r"layers\.(\d)\.blocks\.(\d)", lambda s, b: [1, 3, 5, 11][s] + b),
            (r"layers\.(\d)\.downsample", lambda s: [2, 4, 10][s]),
        ],
    ),
    "biformer_tiny": (  # 2, 2, 8, 2 blocks; downsampling is a layer of its own
        {"out_indices": ALL},
        18,
        [
            (r"downsample_layers\.(\d)", lambda s: [0, 3, 6, 15][s]),
            (r"stages\.(\d)\.(\d)", lambda s, b: [1, 4, 7, 16][s] + b),
        ],
    ),
    "scatterformer_pico": (
        {"out_indices": (0, 1)},
        4,
        [
            (r"cpe", 0),
            (r"stage1\.0\.\w+_layers\.(\d)", lambda b: 1 + b),
            (r"stage1\.[12]", 3),
        ],
    ),
    "dinat_isotropic_small": (
        {"out_indices": (11,)},
        13,
        [(r"patch_embed", 0), (r"layers\.(\d+)", lambda b: 1 + b)],
    ),
    "davit_tiny": (  # 1, 1, 3, 1 blocks; downsampling comes before the first block of its stage
        {"out_indices": ALL},
        7,
        [
            (r"stem", 0),
            (r"stages_(\d)\.blocks\.(\d)", lambda s, b: [1, 2, 3, 6][s] + b),
            (r"stages_(\d)\.downsample", lambda s: [1, 2, 3, 6][s]),
        ],
    ),
    "pose_vit_tiny_patch16_224": (
        {"out_indices": (11,)},
        13,
        [(r"patch_embed|cls_token|pos_embed", 0), (r"blocks\.(\d+)", lambda b: 1 + b)],
    ),
    "resnet18": (
        {"out_indices": (1, 2, 3, 4)},
        9,
        [(r"conv1|bn1", 0), (r"layer(\d)\.(\d)", lambda s, b: 2 * s - 1 + b)],
    ),
    "swin_tiny_patch4_window7_224": (
        {"out_indices": ALL},
        13,
        [
            (r"patch_embed", 0),
            (r"layers_(\d)\.blocks\.(\d)", lambda s, b: [1, 3, 5, 11][s] + b),
            (r"layers_(\d)\.downsample", lambda s: [1, 3, 5, 11][s]),
        ],
    ),
}


def detector(family: str, **options) -> nn.ModuleDict:
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    return nn.ModuleDict({"backbone": Backbone(family, **FAMILIES[family][0], **options), "head": head})


@pytest.mark.parametrize("family", FAMILIES)
def test_factors(family):
    _, layers, patterns = FAMILIES[family]
    model = detector(family)
    factors, _ = layer_factors(model, 0.5)
    assert factors.keys() == {n for n, _ in model.named_parameters()}
    for name, factor in factors.items():
        inner = re.sub(r"^backbone\.net\.(model\.)?", "", name)
        if inner == name:  # the head, and the output norms of the backbone
            assert factor == 1, name
            continue
        match, layer = next((m, layer) for pattern, layer in patterns if (m := re.match(pattern, inner)))
        expected = layer if isinstance(layer, int) else layer(*map(int, match.groups()))
        assert factor == pytest.approx(0.5 ** (layers - expected)), name


def build(model, **paramwise):
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.1)
    constructor = "visionattn.LayerDecayOptimizerConstructor"
    return build_optim_wrapper(model, dict(optimizer=optimizer, constructor=constructor, paramwise_cfg=paramwise))


def groups(model, wrapper) -> dict[str, dict]:
    names = {id(p): n for n, p in model.named_parameters()}
    found = [(names[id(p)], group) for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert len(found) == len({name for name, _ in found}), "each parameter once"
    return dict(found)


@pytest.mark.parametrize("family", ["dinat_pico", "resnet18", "swin_tiny_patch4_window7_224"])
def test_optimizer_has_each_trained_parameter_once(family):
    model = detector(family, frozen_stages=1)
    factors, _ = layer_factors(model, 0.75)
    found = groups(model, build(model, layer_decay_rate=0.75))
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(found) < len(factors)
    for name, group in found.items():
        assert group["lr"] == pytest.approx(1e-3 * factors[name]), name
        table = name.endswith(("rpb", "relative_position_bias_table"))
        vector = model.get_parameter(name).ndim == 1
        assert group["weight_decay"] == (0 if table or vector else 0.1), name


def test_with_the_keys_of_mmengine():
    model = detector("dinat_pico")
    keys = {"levels.3": dict(lr_mult=0.1), "rpb": dict(decay_mult=0.5), "head": dict(lr_mult=10.0, decay_mult=2.0)}
    found = groups(model, build(model, layer_decay_rate=0.5, norm_decay_mult=0.25, custom_keys=keys))
    last, first = "backbone.net.model.levels.3.blocks.1", "backbone.net.model.levels.0.blocks.0"
    assert found[f"{last}.mlp.fc1.weight"]["lr"] == pytest.approx(1e-3 * 0.5 * 0.1)
    assert found[f"{last}.attn.rpb"]["weight_decay"] == 0, "the longest key has no decay_mult"
    assert found[f"{first}.attn.rpb"]["weight_decay"] == pytest.approx(0.05)
    assert found[f"{first}.norm1.weight"]["weight_decay"] == pytest.approx(0.025)
    assert found[f"{first}.mlp.fc1.bias"]["weight_decay"] == 0
    assert found["head.0.weight"]["lr"] == pytest.approx(1e-2)
    assert found["head.1.bias"]["weight_decay"] == pytest.approx(0.2)


def test_a_model_of_timm_without_wrapper():
    """As in SAT and in recognizers; the classifier has the factor 1."""
    import timm

    model = nn.ModuleDict({"vit": timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3)})
    factors, flat = layer_factors(model, 0.5)
    assert factors["vit.head.weight"] == 1
    assert factors["vit.blocks.1.attn.qkv.weight"] == 0.5
    assert factors["vit.pos_embed"] == 0.125
    assert flat == {"vit.pos_embed", "vit.cls_token"}


def test_training_moves_the_stem_least():
    torch.manual_seed(0)
    model = detector("resnet18", drop_path_rate=0.0)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type="SGD", lr=1.0),
            constructor="visionattn.LayerDecayOptimizerConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.1),
        ),
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    moved = {n: float((before[n] - p).abs().mean().detach()) for n, p in model.named_parameters()}
    assert moved["head.0.weight"] == pytest.approx(1)
    assert moved["backbone.net.layer4.1.conv1.weight"] == pytest.approx(0.1, rel=1e-3)
    assert moved["backbone.net.layer4.0.conv1.weight"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("rate", [None, 0, -0.5, 1.5, "0.5"])
def test_mistakes(rate):
    with pytest.raises(ConfigError, match=r"layer_decay_rate must be in \(0, 1\]"):
        build(detector("resnet18"), layer_decay_rate=rate)


def test_models_without_layers():
    with pytest.raises(ConfigError, match="`layer_decay` requires a backbone of timm"):
        build(nn.Linear(2, 2), layer_decay_rate=0.5)
