"""Gated positional self-attention: recordings of the authors' module, timm's, and the sum over all pairs."""

import pytest
import torch
from timm.models.convit import GPSA

from visionattn.layers import GatedPositionalAttention


def test_published_modules(shared_dir):
    """Outputs, probabilities and all gradients, from the published names, loaded strictly."""
    files = sorted((shared_dir / "parity/modules").glob("convit_gpsa*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        options = record["meta"]["kwargs"]
        layer = GatedPositionalAttention(options["dim"], options["num_heads"], qkv_bias=options["qkv_bias"])
        layer.load_state_dict(record["state_dict"])
        x = record["inputs"]["x"].clone().requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        rows = layer.attention(x)[:, :, :32]
        torch.testing.assert_close(rows, record["outputs"]["attn_rows_0_32"], rtol=1e-5, atol=1e-6)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"].pop("x"), rtol=1e-4, atol=1e-4)
        for name, gradient in record["grads"].items():
            found = layer.get_parameter(name.removeprefix("param:")).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [4, 9, 6])
def test_starts_as_timms(heads):
    theirs = GPSA(36, heads, locality_strength=0.7)
    theirs.local_init()
    ours = GatedPositionalAttention(36, heads, locality_strength=0.7)
    for name in ("v.weight", "gating_param"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name))
    side = int(heads**0.5)
    torch.testing.assert_close(ours.pos_proj.weight[: side * side], theirs.pos_proj.weight[: side * side])


def test_equals_timms():
    torch.manual_seed(0)
    theirs = GPSA(12, 3, qkv_bias=True)
    ours = GatedPositionalAttention(12, 3, 5, qkv_bias=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 25, 12)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("size", "prefixes"), [((3, 5), 0), ((6, 2), 1), ((1, 4), 2)])
def test_is_its_definition(size, prefixes):
    """Positions pair by pair; rows of prefix tokens have content alone."""
    torch.manual_seed(0)
    height, width = size
    layer = GatedPositionalAttention(12, 3, num_prefix_tokens=prefixes, qkv_bias=True).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, prefixes + height * width, 12, dtype=torch.double)
    q, k = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in layer.qk(x).split(12, -1))
    weights = (q @ k.mT / 2).softmax(-1)
    for i in range(height * width):
        logits = []
        for j in range(height * width):
            dx, dy = j % width - i % width, j // width - i // width
            logits.append(layer.pos_proj(torch.tensor([dx, dy, dx * dx + dy * dy], dtype=torch.double)))
        position = torch.stack(logits, 1).softmax(-1)
        gate = layer.gating_param.sigmoid()[:, None]
        row = (1 - gate) * weights[:, :, prefixes + i]
        row = torch.cat([row[..., :prefixes], row[..., prefixes:] + gate * position], -1)
        weights = weights.clone()
        weights[:, :, prefixes + i] = row / row.sum(-1, keepdim=True)
    values = layer.v(x).unflatten(-1, (3, 4)).transpose(1, 2)
    expected = layer.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer.attention(x, size), weights)
    torch.testing.assert_close(layer(x, size=size), expected)


def test_dropout_leaves_the_mean():
    """Dropout forms all pairs; without any drop it is the same as without forming them."""
    torch.manual_seed(0)
    layer = GatedPositionalAttention(8, 2, (3, 4), attn_drop=1e-12).double()
    x = torch.randn(2, 12, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), layer.eval()(x))


def test_position_is_sharp_and_finite():
    layer = GatedPositionalAttention(8, 4, locality_strength=100.0)
    columns, rows = layer.position(300, 200)
    assert columns.shape == (4, 300, 300)
    assert rows.shape == (4, 200, 200)
    assert columns.isfinite().all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(4, 200))
