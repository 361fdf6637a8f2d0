"""The routing attention module: published numbers, padding, options, TorchScript, arguments."""

import importlib.util

import pytest
import torch
from torch import nn

from visionattn.kernels import bilevel_routing_attention, route_regions
from visionattn.layers import BiLevelRoutingAttention

LEGACY = ["ada_avg", "maxpool", "nolepe", "plain", "qk_scale", "rect", "soft", "topall"]
NAMES = {  # the published arguments that have another name here
    "n_win": "num_regions",
    "kv_downsample_mode": "kv_pool",
    "kv_per_win": "kv_pool_size",
    "kv_downsample_ratio": "kv_pool_size",
}


def published(shared_dir, name, padding):
    """The recorded case, its `fill` module, and the layer with the case's weights."""
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    fixture = torch.load(shared_dir / "parity" / "biformer" / f"bra_{name}.pt", weights_only=True)
    cfg = {NAMES.get(k, k): v for k, v in fixture["meta"]["cfg"].items() if k != "diff_routing"}
    layer = BiLevelRoutingAttention(**cfg, padding=padding)
    names = {"qkv_linear": "qkv.qkv", "output_linear": "wo"}
    weights = {}
    for key, tensor in fill.official_state_dict(fixture).items():
        module, kind = key.rsplit(".", 1)
        weights[f"{names.get(module, module)}.{kind}"] = (
            tensor.flatten(1) if module in names and tensor.ndim == 4 else tensor
        )
    layer.load_state_dict(weights)
    return fixture, fill, layer


def assert_gradients(fixture, layer, x):
    expected = fixture["grad_input"]
    assert (x.grad - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())
    names = {"qkv_linear": "qkv.qkv", "output_linear": "wo"}
    parameters = dict(layer.named_parameters())
    for key, norm in fixture["grad_norms"].items():
        module, kind = key.rsplit(".", 1)
        got = parameters[f"{names.get(module, module)}.{kind}"].grad.norm()
        assert abs(got - norm) <= 1e-4 * max(1.0, float(norm)), key


@pytest.mark.parametrize("padding", ["masked", "input"])
@pytest.mark.parametrize("case", LEGACY)
def test_published_channels_last_module(shared_dir, case, padding):
    """Outputs, gradients and the routing; the maps divide, so padding makes no difference."""
    fixture, fill, layer = published(shared_dir, f"legacy_{case}", padding)
    x = fill.fixture_input(fixture).requires_grad_()
    out = layer(x)
    fill.loss(out).backward()
    assert (out - fixture["outputs"][0]).abs().max() <= 1e-5
    assert_gradients(fixture, layer, x)
    q, k, _ = layer.qkv(x)
    index, logits = route_regions(q[..., None, :], k[..., None, :], layer.num_regions, layer.topk)
    assert torch.equal(index, fixture["route_idx"])
    assert ((logits * layer.scale).softmax(-1) - fixture["route_weight"]).abs().max() <= 1e-6


@pytest.mark.parametrize("case", ["plain", "nondiv"])
def test_published_nchw_module(shared_dir, case):
    """With ``nondiv`` there are 8 x 9 regions although 7 x 7 were asked for, and padding is attended to."""
    fixture, fill, layer = published(shared_dir, f"nchw_{case}", "projected")
    x = fill.fixture_input(fixture).requires_grad_()
    out = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    fill.loss(out).backward()
    assert (out - fixture["outputs"][0]).abs().max() <= 1e-5
    assert_gradients(fixture, layer, x)
