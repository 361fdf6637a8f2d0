"""BiFormer against the published models, its checkpoints and its construction."""

import re

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones.biformer import BiFormer
from visionattn.errors import CheckpointError
from visionattn.layers import BiLevelRoutingAttention

PARAMETERS = {
    "biformer_tiny": (13_142_760, 12_629_760),
    "biformer_small": (25_536_232, 25_023_232),
    "biformer_base": (56_804_968, 56_035_968),
}
NAMES = {  # the published arguments that have another name here
    "depth": "depths",
    "mlp_ratios": "mlp_ratio",
    "n_win": "num_regions",
    "kv_downsample_mode": "kv_pool",
}
LEFT_OUT = ("kv_per_wins", "before_attn_dwconv", "layer_scale_init_value", "auto_pad")


def arguments(cfg):
    """Published constructor arguments as ours."""
    scale = cfg["layer_scale_init_value"]
    return {NAMES.get(k, k): v for k, v in cfg.items() if k not in LEFT_OUT} | {
        "layer_scale": scale if scale > 0 else None,
        "pos_conv": cfg["before_attn_dwconv"] > 0,
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][0]
    model.reset_classifier(0)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][1]


def test_published_classifier(parity):
    fixture = parity.read("biformer/biformer_full_biformer_tiny.pt")
    model = timm.create_model("biformer_tiny")
    report = load_official(model, {"model": parity.weights(fixture)})
    assert report.settings["padding"] == "'input', as the published model"
    assert {*report.dropped, *report.renamed, *report.interpolated} == set()
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    parity.check(fixture, model)


@pytest.mark.parametrize("case", ["base", "ls", "topm1_0", "autopad"])
def test_published_small_configuration(parity, case):
    """``ls`` has layer scale; ``topm1_0`` the other kinds of attention; ``autopad`` maps that regions do not divide."""
    fixture = parity.read(f"biformer/biformer_tinycfg_{case}.pt")
    model = BiFormer(**arguments(fixture["meta"]["cfg"]))
    load_official(model, parity.weights(fixture))
    parity.check(fixture, model)


def test_published_detection_backbone(parity):
    fixture = parity.read("biformer/biformer_dense_object_detection_tinycfg.pt")
    cfg = arguments(fixture["meta"]["cfg"])
    model = timm.create_model("biformer_tiny", features_only=True, out_norms=(0, 1, 2, 3), **cfg)
    report = load_official(model, {"state_dict": {f"backbone.{k}": v for k, v in parity.weights(fixture).items()}})
    assert report.renamed["backbone.extra_norms.3.weight"] == "norm3.weight"
    assert report.dropped == {}
    norms = fixture["grad_norms"]
    fixture["grad_norms"] = {re.sub(r"^extra_norms\.(\d)", r"norm\1", name): norm for name, norm in norms.items()}
    parity.check(fixture, model, prefix="model.")


SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "head_dim": 8, "num_classes": 5}


def small(name="biformer_tiny", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def paddings(model):
    return {m.padding for m in model.modules() if isinstance(m, BiLevelRoutingAttention)}


def test_a_published_checkpoint_brings_its_padding():
    """Until then padding is masked; sizes that the regions divide are the same in both."""
    source = small()
    assert paddings(source) == {"masked"}
    target = small()
    load_official(target, source.state_dict())
    assert paddings(target) == {"input"}
    odd, even = torch.randn(1, 3, 150, 200), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(target(even), source(even))
        assert not torch.allclose(target(odd), source(odd), atol=1e-4)
        explicit = small(padding="input")
        explicit.load_state_dict(source.state_dict())
        assert torch.equal(explicit(odd), target(odd))


def test_an_explicit_padding_stays():
    source, target = small(), small(padding="masked")
    report = load_official(target, source.state_dict())
    assert paddings(target) == {"masked"}
    assert report.settings["padding"] == "'masked' as set by the user; the published model has 'input'"
    assert "padding is 'masked' as set by the user" in str(report)


def test_a_refused_checkpoint_changes_no_setting():
    target = small()
    with pytest.raises(CheckpointError, match="it seems to be a checkpoint of BiFormer of unpublished size"):
        load_official(target, small(embed_dim=32, head_dim=16).state_dict())
    assert paddings(target) == {"masked"}


def test_pretrained_brings_the_padding(tmp_path):
    torch.save({"model": small().state_dict()}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    model = small(pretrained=True, pretrained_cfg_overlay=overlay)
    assert paddings(model) == {"input"}
    assert torch.equal(model.head.weight, small().head.weight)


def test_dense_weights_of_a_cut_model():
    """Steps and stages after the last one asked for are dropped, with the reason."""
    source = small()
    model = timm.create_model(
        "biformer_tiny",
        features_only=True,
        out_indices=(0, 1),
        **{k: v for k, v in SMALL.items() if k != "num_classes"},
    )
    report = load_official(model, source.state_dict())
    assert report.dropped["downsample_layers.2.0.weight"] == "after the last stage of the model"
    assert report.dropped["stages.3.0.attn.proj.weight"] == "after the last stage of the model"
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = source.forward_intermediates(x, intermediates_only=True)[:2]
        for got, want in zip(model.eval()(x), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_batch_norm_is_the_final_norm():
    model = small()
    assert isinstance(model.norm, torch.nn.BatchNorm2d)
    assert isinstance(small(features_only=True, out_norms=(1,)).model.norm1, torch.nn.LayerNorm)
    assert small(features_only=True, out_norms=(1,)).model.norm1.eps == 1e-6


def test_post_norm_and_other_options():
    options = dict(
        pre_norm=False, mlp_dwconv=True, kv_pool="ada_avgpool", kv_pool_sizes=(2, 2, 1, 1), soft_routing=True
    )
    model = small(**options, layer_scale=0.1, qk_dims=(8, 16, 32, 64), qk_scale=0.2, side_dwconv=3)
    assert "stages.0.0.mlp.1.dwconv.weight" in model.state_dict()
    assert model.stages[0][0].attn.qkv.qkv.out_features == 8 + 8 + 16
    assert model(torch.randn(2, 3, 100, 70)).isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"depths": (1, 1)}, ValueError, "same number of entries"),
        ({"topks": (1, 4, 16, -3)}, ValueError, r"`topks` must be -2, -1, 0 or .*, got \(1, 4, 16, -3\)"),
        ({"topks": (1, 4, 50, -2)}, ValueError, "`topk` must be in 1..49"),
        ({"head_dim": 12}, ValueError, "`head_dim`=12 must divide"),
        ({"padding": "zeros"}, ValueError, "`padding` must be one of 'masked', 'input', 'projected'"),
        ({"global_lepe": "x"}, ValueError, "`global_lepe` must be"),
        ({"window_size": 7}, TypeError, "window_size"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        small(**kwargs)
