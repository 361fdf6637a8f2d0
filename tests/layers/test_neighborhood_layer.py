"""The neighborhood attention modules: published numbers, padding, TorchScript, arguments."""

import importlib.util

import pytest
import torch
from timm.layers import LayerNorm, RmsNorm, RotaryEmbeddingCat, RotaryEmbeddingMixed, apply_rot_embed_cat

from visionattn.layers import NeighborhoodAttention1d, NeighborhoodAttention2d, NeighborhoodAttention3d

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


def windows(length, kernel, stride, dilation, causal):
    """Boolean ``[length, length]``: which keys each query of an axis sees, spelled out one query at a time."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        group = list(range(query % dilation, length, dilation))
        place = group.index(query)
        block = place // stride * stride
        if causal:
            leader = min(block + stride - 1, len(group) - 1)
            seen = range(max(0, leader - kernel + 1), place + 1)
        else:
            leader = min(block + stride // 2, len(group) - 1)
            start = min(max(leader - kernel // 2, 0), len(group) - kernel)
            seen = range(start, start + kernel)
        mask[query, [group[i] for i in seen]] = True
    return mask


def dense(layer, x, rotate=None, extra_k=None, extra_v=None):
    """The layer on a map that needs no padding, with every score written out; `rotate` turns queries and keys."""
    batch, *size, dim = x.shape
    q, k, v = layer.qkv(x.flatten(1, -2)).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = layer.q_norm(q), layer.k_norm(k)  # [batch, heads, places, head_dim]
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    mask = torch.ones(1, 1, dtype=torch.bool)
    axes = zip(size, layer.kernel_size, layer.stride, layer.dilation, layer.is_causal, strict=True)
    for length, *geometry in axes:
        axis = windows(length, *geometry)
        mask = (mask[:, None, :, None] & axis[None, :, None, :]).flatten(2).flatten(0, 1)
    scores = (q @ k.transpose(-1, -2) * layer.scale).masked_fill(~mask, -torch.inf)
    if extra_k is not None:
        scores = torch.cat([scores, q @ extra_k.permute(0, 2, 3, 1) * layer.scale], -1)
        v = torch.cat([v, extra_v.transpose(1, 2)], 2)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, *size, dim)
    return layer.proj(out)


@pytest.mark.parametrize("norm", [LayerNorm, RmsNorm, "rmsnorm"])
@pytest.mark.parametrize("half", [False, True])
def test_norms_and_rotation_against_timm(norm, half):
    """timm's norms and timm's embedding in a dense computation; gradients too, at two sizes of map."""
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(
        16, 2, (3, 5), (2, 1), rel_pos_bias=False, qk_norm=True, norm_layer=norm,
        rope={"temperature": 30.0}, rotate_half=half,
    ).double()  # fmt: skip
    expected_class = RmsNorm if norm == "rmsnorm" else norm
    assert isinstance(layer.q_norm, expected_class)
    for module in (layer.q_norm, layer.k_norm):
        torch.nn.init.normal_(module.weight)
    embedding = RotaryEmbeddingCat(8, in_pixels=False, temperature=30.0)
    for size in ((7, 9), (6, 11)):
        embed = embedding.get_embed(list(size))
        if half:  # from pairs of neighbors to pairs a half apart
            embed = torch.cat([part[:, ::2].repeat(1, 2) for part in embed.chunk(2, -1)], -1)
        x = torch.randn(2, *size, 16, dtype=torch.double, requires_grad=True)
        weight = torch.randn_like(x)
        expected = dense(layer, x, lambda t, e=embed: apply_rot_embed_cat(t, e, half=half))
        for out in (layer(x), layer(x, rope=embed)):
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        for ours, theirs in zip(
            torch.autograd.grad((layer(x) * weight).sum(), [x, *layer.parameters()]),
            torch.autograd.grad((expected * weight).sum(), [x, *layer.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_rotation_per_head():
    """timm's mixed embedding, ``[heads, places, 2 * head_dim]``."""
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(16, 2, 3, rel_pos_bias=False).double()
    mixed = RotaryEmbeddingMixed(16, depth=1, num_heads=2)
    embed = mixed.get_embed([6, 7])[0].detach()
    x = torch.randn(2, 6, 7, 16, dtype=torch.double)
    expected = dense(layer, x, lambda t: apply_rot_embed_cat(t, embed))
    torch.testing.assert_close(layer(x, embed), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"`rope` must have shape \[..., 42, 16\]"):
        layer(x, embed[:, :-1])


@pytest.mark.parametrize(
    ("layer_class", "size", "options"),
    [
        (NeighborhoodAttention1d, (13,), {"kernel_size": 5, "stride": 3, "dilation": 2}),
        (NeighborhoodAttention1d, (13,), {"kernel_size": 4, "stride": 2, "dilation": 2, "is_causal": True}),
        (NeighborhoodAttention2d, (9, 8), {"kernel_size": (3, 4), "stride": (1, 4), "is_causal": (True, False)}),
        (NeighborhoodAttention3d, (5, 6, 4), {"kernel_size": (3, 2, 3), "stride": (2, 2, 1), "rope": True}),
    ],
)
def test_strided_and_causal_with_registers(layer_class, size, options):
    """Registers go through the layer's own projections and norm; ready-made keys join them."""
    torch.manual_seed(0)
    layer = layer_class(24, 2, rel_pos_bias=False, qk_norm=True, **options).double()
    x = torch.randn(2, *size, 24, dtype=torch.double)
    registers = torch.randn(2, 3, 24, dtype=torch.double)
    keys, values = torch.randn(2, 2, 4, 2, 12, dtype=torch.double)
    _, register_k, register_v = layer.qkv(registers).unflatten(-1, (3, 2, 12)).unbind(-3)
    register_k = layer.k_norm(register_k)
    rotate = None
    if layer.rope is not None:
        embed = layer.rope.get_embed(list(size))
        rotate = lambda t: apply_rot_embed_cat(t, embed)  # noqa: E731
    cases = [
        ({}, None, None),
        ({"registers": registers}, register_k, register_v),
        ({"additional_keys": keys, "additional_values": values}, keys, values),
        (
            {"registers": registers, "additional_keys": keys, "additional_values": values},
            torch.cat([keys, register_k], 1),
            torch.cat([values, register_v], 1),
        ),
    ]
    results = []
    for arguments, extra_k, extra_v in cases:
        results.append(layer(x, **arguments))
        torch.testing.assert_close(results[-1], dense(layer, x, rotate, extra_k, extra_v), rtol=0, atol=1e-12)
    assert not torch.allclose(results[0], results[1])


def test_padded_places_are_not_rotated():
    """A 4 x 9 map under kernel 7, with its own rotations and with the same ones given."""
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(16, 2, 7, rel_pos_bias=False, rope=True).double()
    x = torch.randn(1, 4, 9, 16, dtype=torch.double)
    embed = layer.rope.get_embed([4, 9]).view(4, 9, 16)
    still = torch.cat([torch.zeros(3, 9, 8), torch.ones(3, 9, 8)], -1)
    padded = torch.cat([embed, still]).flatten(0, 1)
    expected = dense(layer, torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 3)), lambda t: apply_rot_embed_cat(t, padded))
    torch.testing.assert_close(layer(x), expected[:, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x, embed.flatten(0, 1)), expected[:, :4], rtol=0, atol=1e-12)


def test_autocast_keeps_the_types_of_queries_and_keys():
    """Rotations in float32 must not send the kernel a float32 query beside a bfloat16 value."""
    layer = NeighborhoodAttention2d(16, 2, 3, rel_pos_bias=False, qk_norm=True, rope=True)
    x = torch.randn(1, 6, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, registers=torch.randn(1, 2, 16))
    assert out.dtype == torch.bfloat16
    half = NeighborhoodAttention2d(16, 2, 3, rel_pos_bias=False, qk_norm=True, rope=True, dtype=torch.bfloat16)
    half.load_state_dict(layer.state_dict())
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0, atol=0.05)


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


@pytest.mark.parametrize("options", [{"rope": True, "qk_norm": True}, {"stride": (1, 2), "is_causal": (True, False)}])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_equals_eager_with_every_option(options):
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(16, 2, (3, 5), rel_pos_bias=False, **options).double()
    scripted = torch.jit.script(layer)
    registers = torch.randn(2, 3, 16, dtype=torch.double)
    for size in ((6, 9), (4, 3)):  # the second is padded
        x = torch.randn(2, *size, 16, dtype=torch.double)
        torch.testing.assert_close(scripted(x), layer(x), rtol=0, atol=1e-12)
        out = scripted(x, registers=registers)
        torch.testing.assert_close(out, layer(x, registers=registers), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_every_option(dynamic):
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(16, 2, 3, stride=2, rel_pos_bias=False, qk_norm=True, rope=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x, registers = torch.randn(2, 7, 6, 16), torch.randn(2, 3, 16)
    torch.testing.assert_close(compiled(x, registers=registers), layer(x, registers=registers))


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
    with pytest.raises(ValueError, match=r"at least as large as `kernel_size`=\[7, 7\] times `dilation`=\[2, 2\]"):
        layer(torch.zeros(1, 13, 20, 8))


def test_state_dict_names():
    full = NeighborhoodAttention2d(8, 2).state_dict()
    assert set(full) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rpb"}
    plain = NeighborhoodAttention2d(8, 2, rel_pos_bias=False, qkv_bias=False).state_dict()
    assert set(plain) == {"qkv.weight", "proj.weight", "proj.bias"}
    normed = NeighborhoodAttention2d(8, 2, qk_norm=True, rope=True).state_dict()
    norms = {f"{name}_norm.{part}" for name in "qk" for part in ("weight", "bias")}
    assert set(normed) == set(full) | norms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9, "num_heads": 2}, "multiple of `num_heads`=2, got 9"),
        ({"dim": 8, "num_heads": 2, "attn_drop": 0.1}, "`attn_drop` must be 0, .*, got 0.1"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 4}, "`kernel_size` must be odd with `rel_pos_bias`, got 4"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 1}, "`kernel_size` must be"),
        ({"dim": 8, "num_heads": 2, "dilation": (1, 2, 3)}, "`dilation` must be"),
        ({"dim": 8, "num_heads": 2, "dilation": 0}, "`dilation` must be"),
        ({"dim": 8, "num_heads": 2, "stride": 8}, "`stride` must be at most `kernel_size`=7, got 8"),
        ({"dim": 8, "num_heads": 2, "stride": 0}, "`stride` must be"),
        ({"dim": 8, "num_heads": 2, "is_causal": True}, "`rel_pos_bias` must be False with `is_causal`=True"),
        ({"dim": 8, "num_heads": 2, "is_causal": (True,), "rel_pos_bias": False}, "`is_causal` must be a bool, or 2"),
        ({"dim": 6, "num_heads": 2, "rope": True}, "`dim` must be even and at least 4 .*, got 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention2d(**arguments)


def test_wrong_rank():
    with pytest.raises(ValueError, match="must have 4 axes"):
        NeighborhoodAttention2d(8, 2)(torch.zeros(2, 49, 8))
