"""InLine attention: recordings of the authors' modules, and its weights written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionattn.layers import InLineAttention
from visionattn.layers.inline_attention import KERNEL_FUNCTIONS, dynamic_conv


def test_published_modules(shared_dir):
    """Outputs and all gradients, from the published names, loaded strictly."""
    files = sorted((shared_dir / "parity/modules").glob("inline_attn_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        options = record["meta"]["kwargs"]
        layer = InLineAttention(
            options["dim"],
            options["num_heads"],
            options.get("window_size", options.get("window")),
            num_prefix_tokens=int("deit" in record["meta"]["cls"]),
            qkv_bias="qkv.bias" in record["state_dict"],
            kernel_func=options.get("kernel_func", "identity"),
        )
        layer.load_state_dict(record["state_dict"])
        x = record["inputs"]["x"].clone().requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = layer.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


FUNCTIONS = {
    "identity": lambda x: x,
    "relu": lambda x: x * (x > 0),
    "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "exp": lambda x: (x / 5).exp(),
}


def by_definition(layer: InLineAttention, x: Tensor, height: int, width: int) -> Tensor:
    """All pairs, each head and sample by itself."""
    prefix, d = layer.num_prefix_tokens, layer.head_dim
    q, k, v = layer.qkv(x).split(layer.dim, -1)
    q, k = FUNCTIONS[layer.kernel_func](q), FUNCTIONS[layer.kernel_func](k)
    out = torch.empty_like(x)
    for h in range(layer.num_heads):
        part = slice(h * d, (h + 1) * d)
        logits = q[..., part] @ k[..., part].mT / d**0.5
        weights = (1 + logits - logits.mean(-1, keepdim=True)) / x.shape[1]
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        out[..., part] = weights @ v[..., part]
    for b, mean in enumerate(x.mean(1)):
        kernels = layer.residual(mean[None, :, None]).view(layer.dim, 1, 3, 3)
        values = v[b, prefix:].T.reshape(1, layer.dim, height, width)
        out[b, prefix:] += F.conv2d(values, kernels, padding=1, groups=layer.dim)[0].flatten(1).T
    return layer.proj(out)


@pytest.mark.parametrize("kernel_func", KERNEL_FUNCTIONS)
@pytest.mark.parametrize(("size", "prefixes"), [((5, 8), 0), ((9, 3), 1), ((1, 2), 2)])
def test_is_its_definition(size, prefixes, kernel_func):
    torch.manual_seed(0)
    layer = InLineAttention(12, 3, num_prefix_tokens=prefixes, qkv_bias=True, kernel_func=kernel_func).double()
    x = 3 * torch.randn(2, prefixes + size[0] * size[1], 12, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, size=size), by_definition(layer, x, *size))


def test_dynamic_conv():
    x = torch.randn(2, 3, 4, 6, dtype=torch.double, requires_grad=True)
    kernels = torch.randn(2, 3, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(dynamic_conv, (x, kernels))
    expected = F.conv2d(x.view(1, 6, 4, 6), kernels.view(6, 1, 3, 3), padding=1, groups=6)
    torch.testing.assert_close(dynamic_conv(x, kernels), expected.view_as(x))


def test_many_tokens_in_half_precision():
    """A sum over 16384 keys and values would not fit into float16."""
    torch.manual_seed(0)
    layer = InLineAttention(8, 1)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(8).repeat(3, 1))
    x = 4 + torch.randn(1, 8, 128, 128)
    expected = layer(x)
    found = layer.half()(x.half())
    assert found.isfinite().all()
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`kernel_func` must be one of .*, got 'softmax'"):
        InLineAttention(8, 2, kernel_func="softmax")
    with pytest.raises(ValueError, match=r"`attn_drop` must be 0, .*, got 0\.1"):
        InLineAttention(8, 2, attn_drop=0.1)
