"""BiFormer against the published models, its checkpoints and its construction."""

import re

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones.biformer import BiFormer

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
