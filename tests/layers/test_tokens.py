"""What attention modules over token maps have in common: their inputs, any size, compiling and exporting."""

import copy

import pytest
import torch
from torch import nn
from torch.export import Dim

from visionattn.layers import AgentAttention, GatedPositionalAttention, InLineAttention, SparsifinerAttention
from visionattn.layers._tokens import TokenAttention, pair, resize_grid

OPTIONS = {AgentAttention: {"agent_num": (2, 3)}, SparsifinerAttention: {"coefficients": 3}}
CLASSES = (AgentAttention, GatedPositionalAttention, InLineAttention, SparsifinerAttention)
every_class = pytest.mark.parametrize("cls", CLASSES)


def make(cls: type[TokenAttention], prefixes: int = 0, **options) -> TokenAttention:
    torch.manual_seed(0)
    options = {"input_size": (4, 6), "qkv_bias": True, **OPTIONS.get(cls, {}), **options}
    layer = cls(16, 4, num_prefix_tokens=prefixes, **options)
    for parameter in layer.parameters():  # so that no part is too small to be seen
        nn.init.normal_(parameter, std=0.3)
    return layer


@every_class
def test_maps_and_tokens(cls):
    """``[B, C, H, W]`` is ``[B, N, C]`` in row-major order."""
    layer = make(cls).double()
    for size in ((4, 6), (6, 4), (3, 7), (1, 1), (9, 2)):
        x = torch.randn(2, 16, *size, dtype=torch.double)
        y = layer(x.flatten(2).transpose(1, 2), size=size)
        torch.testing.assert_close(layer(x), y.transpose(1, 2).reshape(x.shape))


@every_class
def test_height_is_not_width(cls):
    layer = make(cls)
    x = torch.randn(1, 24, 16)
    assert torch.equal(layer(x), layer(x, size=(4, 6)))
    assert (layer(x) - layer(x, size=(6, 4))).abs().max() > 1e-3


@every_class
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("prefixes", [0, 1, 3])
def test_gradients_reach_everything(cls, size, prefixes):
    layer = make(cls, prefixes)
    x = torch.randn(2, prefixes + size[0] * size[1], 16, requires_grad=True)
    y = layer(x, size=size)
    assert y.shape == x.shape
    loss = (y * torch.randn_like(y)).sum()
    if cls is SparsifinerAttention:  # the choice has no gradient; the predictor learns from this
        loss = loss + layer.reconstruction_loss(x, size)
    loss.backward()
    for name, tensor in (("x", x), *layer.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        # a bias of the keys, or of all logits, does not change a softmax
        if name not in ("pos_proj.bias", "qk.bias", "mask_predictor.proj_c_k.bias"):
            assert tensor.grad.abs().max() > 1e-7, name


@every_class
def test_samples_are_independent(cls):
    layer = make(cls, 1).double()
    x = torch.randn(3, 25, 16, dtype=torch.double)
    torch.testing.assert_close(layer(x), torch.cat([layer(row[None]) for row in x]))


@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(cls, dtype):
    # all tokens kept: in another precision others would be chosen
    options = {"keep_rate": 1.0} if cls is SparsifinerAttention else {}
    layer = make(cls, 1, **options)
    x = torch.randn(2, 25, 16)
    expected = layer(x)
    found = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()
    with torch.autocast("cpu", dtype):
        found = layer(x)
    assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()


@every_class
def test_dropout_only_in_training(cls):
    rates = {"proj_drop": 0.5} if cls is InLineAttention else {"attn_drop": 0.5}
    layer = make(cls, 1, **rates)
    x = torch.randn(1, 25, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    plain = make(cls, 1)
    torch.testing.assert_close(layer(x), plain(x))


@every_class
def test_compile(cls):
    """In one graph, with its gradients."""
    layer = make(cls, 1)
    x = torch.randn(2, 25, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, layer.get_parameter(name).grad, rtol=1e-4, atol=1e-4)


@every_class
def test_export_for_any_size(cls):
    layer = make(cls).eval()
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(layer, (torch.randn(2, 16, 10, 14),), dynamic_shapes=dynamic).module()
    for shape in ((3, 16, 7, 12), (2, 16, 10, 14)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x))


@every_class
def test_devices_and_types(cls):
    layer = cls(16, 4, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


@every_class
def test_bad_arguments(cls):
    for options, message in (
        ({"dim": 18}, "`dim` must be a multiple of `num_heads`=4, got 18"),
        ({"input_size": 0}, "`input_size` must be .*, got 0"),
        ({"input_size": (3, 4, 5)}, r"`input_size` must be .*, got \(3, 4, 5\)"),
        ({"num_prefix_tokens": -1}, "`num_prefix_tokens` must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            cls(**{"dim": 16, "num_heads": 4, **options})


@every_class
def test_bad_inputs(cls):
    layer, with_class = make(cls), make(cls, 1)
    with pytest.raises(ValueError, match=r"must have 24 tokens for `size`=\(4, 6\) .*, got 25"):
        layer(torch.zeros(1, 25, 16))
    with pytest.raises(ValueError, match=r"must have 21 tokens for `size`=\(5, 4\) and `num_prefix_tokens`=1"):
        with_class(torch.zeros(1, 25, 16), size=(5, 4))
    with pytest.raises(ValueError, match=r"must be \[B, N, C\] with `num_prefix_tokens`=1"):
        with_class(torch.zeros(1, 16, 4, 6))
    with pytest.raises(ValueError, match="must have `dim`=16 channels, got 17"):
        layer(torch.zeros(1, 17, 4, 6))
    with pytest.raises(ValueError, match=r"got shape \(24, 16\)"):
        layer(torch.zeros(24, 16))
    with pytest.raises(ValueError, match="`attn_mask` must be None"):
        layer(torch.zeros(1, 24, 16), attn_mask=torch.ones(24, 24))
    with pytest.raises(ValueError, match="`is_causal` must be False"):
        layer(torch.zeros(1, 24, 16), is_causal=True)


def test_pair():
    assert pair(3, "size") == (3, 3)
    assert pair([3, 4], "size") == (3, 4)
    for bad in (0, (1,), (2, 0), (2.0, 3)):
        with pytest.raises(ValueError, match="`size` must be an integer >= 1"):
            pair(bad, "size")


def test_resize_grid():
    """Rows before the map stay; a plane stays a plane where it is not at the border; same size: the same table."""
    size, new = (4, 6), (8, 12)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    table = torch.cat([torch.tensor([[7.0, 9.0]]), torch.stack([rows.flatten(), columns.flatten()], 1)])
    assert torch.equal(resize_grid(table, size, size), table)
    wide = resize_grid(table, size, new)
    assert torch.equal(wide[0], table[0])
    found = wide[1:].view(*new, 2)
    torch.testing.assert_close(found[1:-1, 0, 0], torch.arange(6) / 2 + 0.25)
    torch.testing.assert_close(found[0, 1:-1, 1], torch.arange(10) / 2 + 0.25)
    assert resize_grid(table.bfloat16(), size, new).dtype == torch.bfloat16
