"""The neighborhood attention modules: published numbers, padding, TorchScript, arguments."""

import importlib.util

import pytest
import torch

from visionattn.kernels import na2d
from visionattn.layers import NeighborhoodAttention1d, NeighborhoodAttention2d, NeighborhoodAttention3d
from visionattn.layers.neighborhood import _gather_attention

CASES = ["6x9_k7_d1", "7x7_k7_d1", "10x10_k7_d2", "14x14_k7_d2", "16x13_k3_d4", "29x31_k5_d3"]


@pytest.mark.parametrize("case", CASES)
def test_published_module(shared_dir, case):
    """Outputs and every gradient of the authors' module, with padding in two of the cases."""
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    fixture = torch.load(shared_dir / "parity" / "na" / f"na2d_rpb_{case}.pt", weights_only=True)
    meta = fixture["meta"]
    layer = NeighborhoodAttention2d(meta["dim"], meta["num_heads"], meta["kernel_size"], meta["dilation"])
    layer.load_state_dict(fill.official_state_dict(fixture))
    x = fill.fixture_input(fixture).requires_grad_()
    out = layer(x)
    fill.loss(out).backward()
    assert (out - fixture["outputs"][0]).abs().max() <= 1e-5
    gradients = {"input": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    for name, expected in {"input": fixture["grad_input"], **fixture["grads"]}.items():
        bound = 1e-4 * max(1.0, expected.abs().max().item())
        assert (gradients[name] - expected).abs().max() <= bound, name


@pytest.mark.parametrize(
    ("layer_class", "size", "kernel", "dilation"),
    [
        (NeighborhoodAttention1d, (13,), 5, 2),
        (NeighborhoodAttention2d, (9, 14), (3, 5), (2, 1)),
        (NeighborhoodAttention2d, (4, 17), 7, 2),
        (NeighborhoodAttention2d, (20, 9), 7, "auto"),
        (NeighborhoodAttention3d, (5, 6, 4), (3, 3, 3), (1, 2, 1)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_equals_eager(layer_class, size, kernel, dilation):
    torch.manual_seed(0)
    layer = layer_class(8, 2, kernel, dilation).double()
    torch.nn.init.normal_(layer.rpb)
    x = torch.randn(2, *size, 8, dtype=torch.double)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x), rtol=0, atol=1e-12)


def test_gather_equals_the_reference_kernel():
    """The path for TorchScript against the definition, even kernels too."""
    torch.manual_seed(0)
    for kernel, dilation in [((3, 5), (3, 2)), ((4, 2), (2, 5)), ((10, 11), (1, 1))]:
        q, k, v = torch.randn(3, 2, 10, 11, 2, 4, dtype=torch.double)
        rpb = torch.randn(2, *(2 * n - 1 for n in kernel), dtype=torch.double) if kernel == (3, 5) else None
        expected = na2d(q, k, v, kernel, dilation=dilation, scale=0.7, rpb=rpb, backend="reference")
        out = _gather_attention(q, k, v, list(kernel), list(dilation), 0.7, rpb)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_auto_dilation_fills_the_map():
    """On 15 x 22 with kernel 7 the steps are 2 and 3; a map below the kernel is padded as with dilation 1."""
    torch.manual_seed(0)
    auto = NeighborhoodAttention2d(8, 2, 7, "auto")
    for size, dilation in [((15, 22), (2, 3)), ((5, 8), (1, 1))]:
        fixed = NeighborhoodAttention2d(8, 2, 7, dilation)
        fixed.load_state_dict(auto.state_dict())
        x = torch.randn(1, *size, 8)
        assert torch.equal(auto(x), fixed(x))


def test_padding_can_be_refused():
    layer = NeighborhoodAttention2d(8, 2, 7, 2, pad_small=False)
    assert layer(torch.zeros(1, 14, 14, 8)).shape == (1, 14, 14, 8)
    with pytest.raises(ValueError, match=r"smaller than kernel_size \[7, 7\] times dilation \[2, 2\]"):
        layer(torch.zeros(1, 13, 20, 8))


def test_state_dict_names():
    full = NeighborhoodAttention2d(8, 2).state_dict()
    assert set(full) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rpb"}
    plain = NeighborhoodAttention2d(8, 2, rel_pos_bias=False, qkv_bias=False).state_dict()
    assert set(plain) == {"qkv.weight", "proj.weight", "proj.bias"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9, "num_heads": 2}, "multiple of num_heads"),
        ({"dim": 8, "num_heads": 2, "attn_drop": 0.1}, "attn_drop=0.1 is not supported"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 4}, "odd kernel sizes"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 1}, "kernel_size must be"),
        ({"dim": 8, "num_heads": 2, "dilation": (1, 2, 3)}, "dilation must be"),
        ({"dim": 8, "num_heads": 2, "dilation": 0}, "dilation must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention2d(**arguments)


def test_wrong_rank():
    with pytest.raises(ValueError, match="must have 4 axes"):
        NeighborhoodAttention2d(8, 2)(torch.zeros(2, 49, 8))
