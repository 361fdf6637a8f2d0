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


OPTIONS = [
    {},
    {"soft_routing": True},
    {"soft_routing": True, "learned_routing": True},
    {"kv_pool": "ada_avgpool", "kv_pool_size": 1},
    {"kv_pool": "ada_maxpool", "kv_pool_size": 2},
    {"kv_pool": "maxpool", "kv_pool_size": 2},
    {"kv_pool": "avgpool", "kv_pool_size": 2},
    {"qk_dim": 8, "side_dwconv": 0, "out_proj": False},
]


@pytest.mark.parametrize("padding", ["masked", "input", "projected"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_equals_eager(options, padding):
    """A second implementation of everything: plain gathers of regions, in float64, at sizes that do not divide."""
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(16, 2, 3, 4, padding=padding, **options).double()
    scripted = torch.jit.script(layer)
    for size in [(9, 9), (12, 10), (16, 17), (6, 21)]:
        x = torch.randn(2, *size, 16, dtype=torch.double, requires_grad=True)
        out, other = layer(x), scripted(x)
        torch.testing.assert_close(other, out, rtol=0, atol=1e-12)
        weight = torch.randn_like(out)
        (got,), (want,) = torch.autograd.grad(out, x, weight), torch.autograd.grad(other, x, weight)
        assert want.isfinite().all()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kv_pool", ["ada_avgpool", "maxpool"])
def test_masked_padding_is_not_there(kv_pool):
    """With regions of one row and one column beyond the map, the result is that of the smaller map alone."""
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(8, 2, (2, 2), 2, kv_pool=kv_pool, kv_pool_size=1, side_dwconv=0).double()
    x = torch.randn(1, 4, 4, 8, dtype=torch.double)
    wide = BiLevelRoutingAttention(8, 2, (3, 3), 2, kv_pool=kv_pool, kv_pool_size=1, side_dwconv=0).double()
    wide.load_state_dict(layer.state_dict())
    torch.testing.assert_close(wide(x), layer(x))  # 3 regions of 2 cover 6: the last ones are empty
    published = BiLevelRoutingAttention(8, 2, (3, 3), 2, side_dwconv=0, padding="input").double()
    published.load_state_dict(layer.state_dict())
    assert not torch.allclose(published(x), layer(x))


def test_input_padding_by_hand():
    """Zeros around the map, then everything as if they were part of it."""
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(8, 2, 4, 3, side_dwconv=3, padding="input")
    x = torch.randn(1, 6, 9, 8)
    padded = nn.functional.pad(x, (0, 0, 0, 3, 0, 2))
    torch.testing.assert_close(layer(x), layer(padded)[:, :6, :9])
    layer.set_padding("masked")
    assert not torch.allclose(layer(x), layer(padded)[:, :6, :9])


def test_the_scale_is_of_all_channels():
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(16, 4, 2, 4, side_dwconv=0, out_proj=False)
    x = torch.randn(1, 4, 4, 16)
    q, k, v = (t.unflatten(-1, (4, 4)) for t in layer.qkv(x))
    expected = bilevel_routing_attention(q, k, v, 2, 4, scale=16**-0.5)
    torch.testing.assert_close(layer(x), expected.flatten(3))


def test_soft_routing_reaches_the_router():
    layer = BiLevelRoutingAttention(8, 2, 3, 2, soft_routing=True, learned_routing=True)
    layer(torch.randn(1, 9, 9, 8)).square().sum().backward()
    assert layer.router.emb.weight.grad.abs().sum() > 0


def test_state_dict_names():
    layer = BiLevelRoutingAttention(8, 2, soft_routing=True, learned_routing=True)
    modules = {name.rsplit(".", 1)[0] for name in layer.state_dict()}
    assert modules == {"lepe", "qkv.qkv", "router.emb", "wo"}
    plain = BiLevelRoutingAttention(8, 2, side_dwconv=0, out_proj=False)
    assert set(plain.state_dict()) == {"qkv.qkv.weight", "qkv.qkv.bias"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9}, "multiples of `num_heads`=2, got 9"),
        ({"qk_dim": 9}, "multiples of `num_heads`=2, got 8 and 9"),
        ({"num_regions": 0}, "`num_regions` must be"),
        ({"num_regions": (2, 2, 2)}, "`num_regions` must be"),
        ({"topk": 0}, "`topk` must be in 1..49, .*, got 0"),
        ({"topk": 50}, "the number of regions, got 50"),
        ({"side_dwconv": 4}, "`side_dwconv` must be odd"),
        ({"kv_pool": "fracpool"}, "`kv_pool` must be one of 'identity'"),
        ({"kv_pool": "maxpool"}, "`kv_pool_size` must be at least 1 with `kv_pool`='maxpool'"),
        ({"learned_routing": True}, "`soft_routing` must be True with `learned_routing`"),
        ({"padding": "zeros"}, "`padding` must be one of 'masked', 'input', 'projected'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(**{"dim": 8, "num_heads": 2, **arguments})


def test_wrong_rank():
    with pytest.raises(ValueError, match="must have 4 axes"):
        BiLevelRoutingAttention(8, 2)(torch.zeros(2, 49, 8))
