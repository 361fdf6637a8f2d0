"""Attention modules in the backbones of configs: built, loaded, frozen, and described."""

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.config import Config

from visionattn.data.digits import build_digit_scenes
from visionattn.engine.parts.backbone import Backbone
from visionattn.engine.parts.plugins import apply_plugins, is_plugin, original_names
from visionattn.engine.train.finetune.layer_decay import layer_factors
from visionattn.engine.train.finetune.sources import Source
from visionattn.engine.train.finetune.start import start_from
from visionattn.errors import CheckpointError, ConfigError
from visionattn.layers import AgentAttention, replace_attention
from visionattn.layers.replace import ATTENTIONS

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
# name, arguments of timm, plugins, places of the new modules in the net
CASES = {
    "vit_tiny_patch16_224": (
        {"img_size": 64, "embed_dim": 24, "depth": 4},
        {"out_indices": (1, 2)},
        [{"type": "inline", "where": "blocks.0.*"}, {"type": "agent", "where": "blocks.[12].*"}],
        ["model.blocks.0.attn", "model.blocks.1.attn", "model.blocks.2.attn"],
    ),
    "swin_tiny_patch4_window7_224": (
        SWIN,
        {"out_indices": (0, 1, 2)},
        [{"type": "agent", "where": "layers.[01].*", "agent_shape": [4, 4, 4, 4]}],
        ["layers_0.blocks.0.attn", "layers_1.blocks.0.attn"],
    ),
    "davit_tiny": (
        {"embed_dims": (12, 24, 48, 96), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
        {"out_indices": (0, 1)},
        [{"type": "gpsa"}],
        ["stages_0.blocks.0.0.attn", "stages_1.blocks.0.0.attn"],
    ),
    "pvt_v2_b0": (
        {"embed_dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
        {"out_indices": (1, 2, 3)},
        [{"type": "agent", "where": "stages.3.*"}],
        ["stages_3.blocks.0.attn"],
    ),
    "resnet18": (
        {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
        {"out_indices": (1, 2, 3)},
        [{"type": "ela"}, {"type": "ulsam", "where": "layer2", "num_splits": 8}],
        ["layer1.0.se", "layer2.0.se", "layer2.ulsam", "layer3.0.se"],
    ),
    "mobilenetv1_100": (
        {},
        {"out_indices": (2, 3)},
        [{"type": "ulsam", "where": "blocks.3.[1-5]", "replace": True, "num_splits": 4}],
        [f"blocks.3.{n}" for n in range(1, 6)],
    ),
}
every_case = pytest.mark.parametrize("name", CASES)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(name: str, **more) -> Backbone:
    arguments, levels, plugins, _ = CASES[name]
    return Backbone(name, plugins=plugins, **arguments, **levels, **more)


def plain(name: str) -> nn.Module:
    """A classifier without the plugins; its norms are not at their initial values."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=3, **CASES[name][0])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@every_case
def test_built_and_trained(name):
    """The modules are where the plugins say; every parameter gets a gradient; the levels are those without plugins."""
    torch.manual_seed(0)
    backbone = make(name)
    arguments, levels, _, places = CASES[name]
    assert [n for n, m in backbone.net.named_modules() if is_plugin(m)] == places
    outputs = backbone(IMAGES)
    expected = Backbone(name, **arguments, **levels)(IMAGES)
    assert [o.shape for o in outputs] == [o.shape for o in expected]
    (sum(o.square().sum() for o in outputs)).backward()
    unused = {n for n, p in backbone.net.named_parameters() if p.grad is None}
    assert not any(n.startswith(tuple(places)) for n in unused)


@every_case
def test_pretrained_of_the_original(name, tmp_path):
    """Other weights are those of the file; the projections of replaced attention too; the new ones are not."""
    model = plain(name)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    backbone = make(name, pretrained=str(tmp_path / "plain.pth"))
    expected = Backbone(name, pretrained=str(tmp_path / "plain.pth"), **CASES[name][0], **CASES[name][1])
    own, theirs = backbone.state_dict(), expected.state_dict()
    common = own.keys() & theirs.keys()
    assert all(torch.equal(own[n], theirs[n]) for n in common)
    places = tuple(f"net.{place}." for place in CASES[name][3])
    assert all(n.startswith(places) for n in own.keys() - common)
    for place in CASES[name][3]:
        if isinstance(backbone.net.get_submodule(place), tuple(ATTENTIONS.values())):
            assert torch.equal(own[f"net.{place}.proj.weight"], theirs[f"net.{place}.proj.weight"])
    assert "all weights" not in backbone._changes
    # load_weights, which `--from` uses, does the same with a model that exists
    other = make(name)
    loaded = other.load_weights(model.state_dict(), "plain.pth")
    assert all(torch.equal(other.state_dict()[n], theirs[n]) for n in loaded if n in theirs)
    assert set(loaded) >= {n for n in theirs if n in own and not n.startswith("norm")}
    carried = {n for n in loaded if n not in theirs}
    assert all(n.split(".")[-2] in ("qkv", "qk", "v") for n in carried), "of the new tensors, only projections"


@every_case
@pytest.mark.parametrize("kind", ["run", "timm"])
def test_pretrained_with_the_plugins(name, kind, tmp_path):
    """Checkpoints of a run, and of the whole timm model with the same modules."""
    torch.manual_seed(0)
    source = make(name).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    if kind == "run":
        weights = {f"backbone.{n}": w for n, w in source.state_dict().items()}
        torch.save({"state_dict": weights}, tmp_path / "changed.pth")
    else:
        model = plain(name)
        apply_plugins(model, CASES[name][2])
        names = original_names(source.net, model)
        assert names.keys() == source.net.state_dict().keys()
        model.load_state_dict({names[n]: w for n, w in source.net.state_dict().items()}, strict=False)
        torch.save(model.state_dict(), tmp_path / "changed.pth")
    backbone = make(name, pretrained=str(tmp_path / "changed.pth")).eval()
    assert all(torch.equal(w, source.net.state_dict()[n]) for n, w in backbone.net.state_dict().items())
    assert backbone._changes.endswith("changed.pth")
    other, weights = make(name), torch.load(tmp_path / "changed.pth")
    loaded = other.load_weights(weights.get("state_dict", weights), "changed.pth")
    assert set(loaded) >= {f"net.{n}" for n in source.net.state_dict()}
    assert all(torch.equal(w, source.net.state_dict()[n]) for n, w in other.net.state_dict().items())


def test_official_names(tmp_path):
    """Published Swin checkpoints count the downsampling from the other side; agent biases are interpolated."""
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **{**SWIN, "img_size": 128})
    replace_attention(model, "agent", where="layers.[01].*")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    official = {}
    for name, value in model.state_dict().items():
        if name.startswith("layers.") and ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.", 1)
        official[name.replace("head.fc.", "head.")] = value
    torch.save({"model": official}, tmp_path / "agent_swin.pth")
    backbone = make("swin_tiny_patch4_window7_224", pretrained=str(tmp_path / "agent_swin.pth"))
    assert torch.equal(backbone.net.layers_1.downsample.reduction.weight, model.layers[1].downsample.reduction.weight)
    ours, theirs = backbone.net.layers_0.blocks[0].attn, model.layers[0].blocks[0].attn
    assert torch.equal(ours.an_bias, theirs.an_bias)
    assert (ours.ah_bias.shape[3], theirs.ah_bias.shape[3]) == (16, 32)
    torch.testing.assert_close(ours.ah_bias[..., 0, 0], theirs.ah_bias[..., :2, 0].mean(3))
    del official["layers.0.blocks.0.attn.ah_bias"]
    torch.save({"model": official}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth: .*with its plugins.*ah_bias is missing"):
        make("swin_tiny_patch4_window7_224", pretrained=str(tmp_path / "part.pth"))


@every_case
def test_layers(name):
    """New modules have the layer of what they are in, for layer-wise learning rates and frozen stages."""
    backbone = make(name)
    ids = backbone.layer_ids()
    assert ids.keys() == {n for n, _ in backbone.named_parameters() if n.startswith("net.")}
    assert layer_factors(nn.ModuleDict({"backbone": backbone}), 0.5)[0]
    assert set(ids.values()) == set(range(max(ids.values()) + 1))
    for place in CASES[name][3]:
        numbers = {number for n, number in ids.items() if n.startswith(f"net.{place}.")}
        assert len(numbers) == 1
        if name == "mobilenetv1_100":
            before, after = f"blocks.3.{int(place[-1]) - 1}.", f"blocks.3.{int(place[-1]) + 1}."
            assert all(ids[n] < min(numbers) for n in ids if n.startswith(f"net.{before}"))
            assert all(ids[n] > min(numbers) for n in ids if n.startswith(f"net.{after}"))
        else:
            parent = place.rpartition(".")[0]
            assert numbers == {max(number for n, number in ids.items() if n.startswith(f"net.{parent}."))}
    biases = {n for n, _ in backbone.named_parameters() if n.rsplit(".", 1)[-1] in ("an_bias", "ha_bias", "wa_bias")}
    assert biases <= backbone.no_weight_decay()
    assert bool(biases) == any(isinstance(m, AgentAttention) for m in backbone.modules())


def test_frozen_stages():
    backbone = make("resnet18", frozen_stages=2).train()
    frozen = {n.removeprefix("net.") for n, p in backbone.named_parameters() if not p.requires_grad}
    assert {n.split(".")[0] for n in frozen} == {"conv1", "bn1", "layer1", "layer2"}
    assert "layer2.ulsam.subspaces.0.conv_dws.weight" in frozen
    assert not backbone.net.layer2.ulsam.training
    assert backbone.net.layer3[0].se.training


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ([{"type": "agnt"}], r"plugins\.0\.type='agnt' is not a plugin; did you mean agent\?"),
        ([{"type": "agent"}, {"where": "blocks.*"}], r"plugins\.1 must be a dict with a `type`"),
        ({"type": "agent"}, r"must be a list of dicts"),
        (
            [{"type": "agent", "where": "layers.*"}],
            r"plugins\.0 .*`where` must match one of blocks\.0\.attn.*'layers\.\*'",
        ),
        ([{"type": "agent", "where": 3}], r"plugins\.0\.where=3 must be a pattern"),
        ([{"type": "agent", "agents": 9}], r"plugins\.0 .*`agents` is not an argument of AgentAttention"),
        ([{"type": "agent", "agent_num": 8}], r"plugins\.0 .*must be a square number"),
        ([{"type": "agent", "agent_num": "x"}], r"plugins\.0 \(type='agent'\)"),
        ([{"type": "agent", "replace": True}], r"plugins\.0\.replace=True .*False except for type='ulsam'"),
        ([{"type": "ela"}], r"plugins\.0 .*`where` must be given"),
        ([{"type": "ela", "where": "patch_embed", "groups": 2}], r"`groups` is not an argument"),
        ([{"type": "ulsam", "replace": True}], r"`where` must be given"),
        ([{"type": "ulsam", "where": "blocks.*", "replace": True}], r"a block with stride 1.*none in this model"),
    ],
)
def test_mistakes(plugins, message):
    with pytest.raises(ConfigError, match=message):
        Backbone("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, out_indices=(1,), plugins=plugins)


@every_case
def test_started_from_a_classifier(name, tmp_path):
    """`--from` and `load_from`: what is new is said; without a file, the pretrained weights are those of timm."""
    torch.save(plain(name).state_dict(), tmp_path / "plain.pth")
    config = Config({"model": {"backbone": {}}})
    model = nn.ModuleDict({"backbone": make(name), "head": nn.Linear(2, 2)})
    new = {f"backbone.{n}" for n in model.backbone.new_tensors}
    places = tuple(f"backbone.net.{place}." for place in CASES[name][3])
    assert all(n.startswith(places) for n in new)
    for file in (tmp_path / "plain.pth", None):
        started = start_from(model, config, Source("source", file))
        said = started.lines[1].removeprefix("new in backbone: ").split(", ")
        norms = {n for n in model.state_dict() if n.startswith("backbone.norm")}  # which classifiers do not have
        assert {f"backbone.{n}" for n in said} == {n for n in new if not n.endswith("batches_tracked")} | norms
        assert not new & started.weights.keys()


def test_checked_with_the_config(tmp_path):
    """Key walk, options by path, and problems of plugins."""
    pytest.importorskip("mmdet")
    from visionattn.engine.config.checks import find_problems
    from visionattn.engine.config.load import load_config

    name = "atss_resnet18-ela_fpn_bccd"
    build_digit_scenes(tmp_path / "data", train=2, test=1, size=128)
    data = {
        "custom_data.root": str(tmp_path / "data"),
        "custom_data.train_ann": "",
        "custom_data.val_ann": "",
        "custom_data.train_img": None,
        "custom_data.val_img": None,
    }
    config = load_config(
        name, data | {"model.backbone.plugins.0.where": "layer3", "model.backbone.plugins.0.variant": "L"}
    )
    assert config.model.backbone.plugins == [{"type": "ela", "variant": "L", "where": "layer3"}]
    assert find_problems(config) == []
    assert load_config(name, data | {"model.backbone.plugins": []}).model.backbone.plugins == []
    config = load_config(name, data | {"model.backbone.plugins.0.type": "elu"})
    assert find_problems(config) == ["backbone plugins.0.type='elu' is not a plugin; did you mean ela?"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pvt_v2_b0", "resnet18"])
def test_exported(name):
    torch.manual_seed(0)
    backbone = make(name).eval()
    expected = backbone(IMAGES)
    for ours, theirs in zip(torch.export.export(backbone, (IMAGES,)).module()(IMAGES), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logged_once(monkeypatch):
    """The runner calls `init_weights`; its log has one line about the plugins."""
    lines = []
    monkeypatch.setattr("visionattn.engine.parts.backbone.print_log", lambda text, logger: lines.append(text))
    make("mobilenetv1_100").init_weights()
    assert lines == ["backbone plugins: ulsam in 5 places (blocks.3.1 to blocks.3.5), 0 tensors kept, 280 new"]
