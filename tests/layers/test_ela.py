"""Efficient local attention: recordings of an independent implementation, and the equations of the paper."""

import copy

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from visionattn.layers import EfficientLocalAttention
from visionattn.layers.ela import VARIANTS


def test_recorded_modules(shared_dir):
    files = sorted((shared_dir / "parity/modules").glob("ela_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        x = record["inputs"]["x"].clone().requires_grad_()
        layer = EfficientLocalAttention(x.shape[1], record["meta"]["variant"])
        layer.load_state_dict(record["state_dict"])
        for found, name in zip(layer.weights(x), ("y_h", "y_w"), strict=True):
            torch.testing.assert_close(found, record["outputs"][name], rtol=1e-5, atol=1e-5)
        y = layer(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = layer.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "shape"),  # of the convolution, by the table of the paper
    [("T", (96, 1, 5)), ("B", (96, 1, 7)), ("S", (96, 8, 5)), ("L", (96, 8, 7))],
)
def test_variants(variant, shape):
    layer = EfficientLocalAttention(96, variant)
    assert layer.conv.weight.shape == shape
    assert layer.gn.num_groups == (32 if variant == "T" else 16)
    assert layer.conv.bias is None
    assert list(layer.state_dict()) == ["conv.weight", "gn.weight", "gn.bias"]


def along(layer: EfficientLocalAttention, line: Tensor) -> Tensor:
    """One axis ``[C, L]``: convolution, group norm and sigmoid, written out."""
    weight = layer.conv.weight
    dim, wide, kernel = weight.shape
    length = line.shape[1]
    out = torch.zeros_like(line)
    for c in range(dim):
        first = c // (dim // layer.conv.groups) * wide
        for place in range(length):
            for tap in range(kernel):
                source = place + tap - kernel // 2
                if 0 <= source < length:
                    out[c, place] += weight[c, :, tap] @ line[first : first + wide, source]
    groups = out.view(layer.gn.num_groups, -1)
    variance = groups.var(1, unbiased=False, keepdim=True)
    normed = ((groups - groups.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()).view_as(out)
    return 1 / (1 + (-(normed * layer.gn.weight[:, None] + layer.gn.bias[:, None])).exp())


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_its_definition(variant):
    torch.manual_seed(0)
    layer = EfficientLocalAttention(16, variant, gn_groups=4).double()
    torch.nn.init.normal_(layer.gn.weight)
    torch.nn.init.normal_(layer.gn.bias)
    x = 1 + torch.randn(2, 16, 5, 8, dtype=torch.double)
    y = layer(x)
    with torch.no_grad():
        for sample, found in zip(x, y, strict=True):
            rows, columns = along(layer, sample.mean(2)), along(layer, sample.mean(1))
            torch.testing.assert_close(found, sample * rows[:, :, None] * columns[:, None])


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 7), (30, 4)])
def test_any_size_and_gradients(size):
    torch.manual_seed(0)
    layer = EfficientLocalAttention(32)
    x = torch.randn(2, 32, *size, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    (y * torch.randn_like(y)).sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_half_precision():
    torch.manual_seed(0)
    layer = EfficientLocalAttention(32)
    x = torch.randn(2, 32, 9, 6)
    expected = layer(x)
    found = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert (layer(x).float() - expected).abs().max() < 0.05


def test_compile_and_export():
    layer = EfficientLocalAttention(32).eval()
    x = torch.randn(2, 32, 9, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic).module()
    other = torch.randn(3, 32, 5, 11)
    torch.testing.assert_close(program(other), layer(other))


def test_errors():
    for options, message in (
        ({"dim": 24}, "`gn_groups` must divide `dim`=24, such as 8, got 16"),
        ({"dim": 36, "variant": "L"}, "`dim` must be a multiple of 8 for `variant`='L' without `conv_groups`, got 36"),
        ({"dim": 32, "variant": "X"}, "`variant` must be one of .*, got 'X'"),
        ({"dim": 32, "kernel_size": 4}, "`kernel_size` must be odd and at least 1, got 4"),
        ({"dim": 32, "conv_groups": 5}, "`conv_groups` must divide `dim`=32"),
        ({"dim": 32, "gn_groups": 0}, "`gn_groups` must divide `dim`=32"),
    ):
        with pytest.raises(ValueError, match=message):
            EfficientLocalAttention(**options)
    layer = EfficientLocalAttention(36, "L", conv_groups=6, gn_groups=9)
    assert layer(torch.randn(1, 36, 3, 4)).shape == (1, 36, 3, 4)
    for bad in (torch.zeros(1, 32, 3, 4), torch.zeros(1, 36, 12)):
        with pytest.raises(ValueError, match=r"`x` must have shape \[B, 36, H, W\]"):
            layer(bad)
