"""Sparsifiner's attention: a recording of the authors' module, and forecast and softmax row by row."""

import math

import pytest
import timm
import torch
from torch import Tensor

from visionattn.layers import SparsifinerAttention, record_reconstruction, replace_attention


def make(size=(4, 6), prefixes: int = 1, **options) -> SparsifinerAttention:
    torch.manual_seed(0)
    options = {"reduce_n": 3, "coefficients": 4, "qkv_bias": True, **options}
    layer = SparsifinerAttention(24, 4, size, prefixes, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def test_published_modules(shared_dir):
    """The mask exactly, the forecast and the output, from the published names, loaded strictly."""
    files = sorted((shared_dir / "parity/modules").glob("sparsifiner_attn_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        options, expected = record["meta"]["kwargs"], record["outputs"]
        side = math.isqrt(options["num_tokens"] - 1)
        layer = SparsifinerAttention(
            options["dim"],
            options["num_heads"],
            side,
            num_prefix_tokens=1,
            qkv_bias=options["qkv_bias"],
            keep_rate=options["attn_keep_rate"],
            reduce_n=options["reduce_n_factor"],
            reduce_c=options["reduce_c_factor"],
        )
        layer.load_state_dict(record["state_dict"])
        tokens = record["inputs"].get("token_mask", record["inputs"].get("prev_token_mask"))
        prune = record["meta"]["SPAR"]["PRUNE_ATTN_MATRIX_ROW"]
        with torch.no_grad():
            y, forecast = layer.forward_forecast(record["inputs"]["x"], token_mask=tokens, prune_rows=prune)
        differing = (forecast.mask.float() != expected["attn_mask"]).float().mean()
        assert differing < 1e-3  # ties
        torch.testing.assert_close(forecast.approximate, expected["approx_attn"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(forecast.coefficients, expected["basis_coef"], rtol=1e-5, atol=1e-5)
        assert (forecast.basis == 0).float().mean().item() == pytest.approx(expected["basis_sparsity"])
        torch.testing.assert_close(y, expected["x"], rtol=1e-4, atol=1e-4)


def forecast_by_definition(layer: SparsifinerAttention, q: Tensor, k: Tensor) -> Tensor:
    """The approximate attention of one head of one sample, ``[N - P, N]``, at the size of the basis."""
    predictor = layer.mask_predictor
    query, keys = predictor.proj_c_q(q), predictor.proj_c_k(k)
    logits = query @ keys.T @ predictor.proj_n / layer.num_heads**0.5
    coefficients = logits[layer.num_prefix_tokens :].softmax(-1)
    for row in coefficients:
        row[row.argsort(descending=True)[layer.coefficients :]] = 0
    basis = predictor.proj_back_n.abs()
    return coefficients @ torch.where(basis > layer.basis_threshold, basis, 0).T


@pytest.mark.parametrize("prefixes", [0, 1, 2])
@pytest.mark.parametrize("keep_rate", [0.1, 0.25, 1.0])
def test_is_its_definition(prefixes, keep_rate):
    layer = make(prefixes=prefixes, keep_rate=keep_rate)
    count = 24 + prefixes
    x = torch.randn(2, count, 24, dtype=torch.double)
    out = torch.empty_like(x)
    with torch.no_grad():
        parts = layer.qkv(x).view(2, count, 3, 4, 6).permute(2, 0, 3, 1, 4)
        for b in range(2):
            for h in range(4):
                q, k, v = parts[:, b, h]
                approximate = forecast_by_definition(layer, q, k)
                for i in range(count):
                    chosen = range(count)
                    if i >= prefixes:
                        chosen = approximate[i - prefixes].argsort(descending=True)[: math.ceil(keep_rate * count)]
                    chosen = torch.as_tensor(chosen)
                    weights = (k[chosen] @ q[i] / 6**0.5).softmax(0)
                    out[b, i, 6 * h : 6 * h + 6] = weights @ v[chosen]
        torch.testing.assert_close(layer(x), layer.proj(out))


def test_forecast():
    layer = make(prefixes=1, keep_rate=0.3)
    x = torch.randn(2, 25, 24, dtype=torch.double)
    y, forecast = layer.forward_forecast(x)
    assert torch.equal(y, layer(x))
    assert forecast.mask[:, :, 0].all()
    assert (forecast.mask[:, :, 1:].sum(-1) == math.ceil(0.3 * 25)).all()
    assert ((forecast.coefficients > 0).sum(-1) == 4).all()
    assert forecast.basis.shape == (25 // 3, 25)
    assert (forecast.basis >= 0).all()
    assert not forecast.approximate.requires_grad


def test_all_kept_is_dense_attention():
    layer = make(keep_rate=1.0)
    x = torch.randn(2, 25, 24, dtype=torch.double)
    attention = timm.layers.Attention(24, 4, qkv_bias=True).double()
    attention.load_state_dict({k: v for k, v in layer.state_dict().items() if "predictor" not in k})
    torch.testing.assert_close(layer(x), attention(x))


@pytest.mark.parametrize("prune_rows", [False, True])
def test_tokens_left_out(prune_rows):
    """Each sample has its own budget, nothing is remembered, and what is left out is not seen."""
    layer = make(keep_rate=0.5)
    x = torch.randn(3, 25, 24, dtype=torch.double)
    tokens = torch.ones(3, 24, dtype=torch.bool)
    tokens[0, 5:] = False  # 5 left, below the budget of 13
    tokens[1, 20:] = False
    tokens[2] = False
    before = layer(x)
    y, forecast = layer.forward_forecast(x, token_mask=tokens, prune_rows=prune_rows)
    rows = forecast.mask[:, :, 1:].sum(-1)
    for sample, (left, budget) in enumerate([(5, 5), (20, 13), (0, 0)]):
        assert (rows[sample, :, :left] == budget).all()
        assert (rows[sample, :, left:] == (0 if prune_rows else budget)).all()
        assert not forecast.mask[sample, :, 1:, 1 + left :].any()
    assert y.isfinite().all()
    torch.testing.assert_close(layer(x), before)
    changed = x.clone()
    changed[0, 6:] += 1
    again, _ = layer.forward_forecast(changed, token_mask=tokens, prune_rows=prune_rows)
    torch.testing.assert_close(again[0, :6], y[0, :6])
    torch.testing.assert_close(y[2, 1:], layer.proj.bias.expand(24, -1))
    for sample in range(3):
        alone, _ = layer.forward_forecast(x[sample : sample + 1], token_mask=tokens[sample : sample + 1])
        if not prune_rows:
            torch.testing.assert_close(alone[0], y[sample])


def test_basis_of_another_size():
    """A basis that is the same everywhere stays so; the row of the class token stays itself."""
    layer = make((4, 6))
    with torch.no_grad():
        layer.mask_predictor.proj_back_n.copy_(torch.arange(1.0, 9).expand(25, 8))
        layer.mask_predictor.proj_back_n[0] = -3
    _, forecast = layer.forward_forecast(torch.randn(1, 41, 24, dtype=torch.double), size=(8, 5))
    torch.testing.assert_close(forecast.basis[:, 0], torch.full((8,), 3.0).double())
    torch.testing.assert_close(forecast.basis[:, 1:], torch.arange(1.0, 9)[:, None].double().expand(8, 40))


def test_reconstruction():
    layer = make()
    x = torch.randn(2, 25, 24, dtype=torch.double)
    approximate, dense = layer.reconstruct(x)
    q, k, _ = layer.qkv(x).view(2, 25, 3, 4, 6).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(dense, (q @ k.mT / 6**0.5).softmax(-1)[:, :, 1:])
    assert approximate.min() < 0  # the basis keeps its sign here
    torch.testing.assert_close(layer.reconstruction_loss(x), (approximate - dense).square().mean())


def test_the_predictor_learns_the_attention():
    """Fitted to the attention of a fixed layer, the forecast chooses more of the strongest pairs than before."""
    layer = make(keep_rate=0.25, reduce_n=1, reduce_c=1, coefficients=25)
    with torch.no_grad():
        for parameter in layer.mask_predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(2, 25, 24, dtype=torch.double)
    optimizer = torch.optim.Adam(layer.mask_predictor.parameters(), 0.02)

    def hits() -> float:
        _, dense = layer.reconstruct(x)
        mask = layer.forward_forecast(x)[1].mask[:, :, 1:]
        return ((dense * mask).sum(-1)).mean().item()

    start = hits()
    for _ in range(150):
        optimizer.zero_grad()
        layer.reconstruction_loss(x).backward()
        optimizer.step()
    assert hits() > start + 0.1


def test_losses_of_a_model():
    """Every parameter of the model is used then, as data parallelism needs it; hooks are gone afterwards."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24)
    replace_attention(model, "sparsifiner")
    images = torch.randn(2, 3, 64, 64)
    with record_reconstruction(model) as losses:
        logits = model(images)
    assert len(losses) == 2
    (logits.square().mean() + 0.01 * sum(losses)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model(images)
    assert len(losses) == 2
    windows = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(1, 1), num_heads=(2, 2)
    )
    replace_attention(windows, "sparsifiner")
    with record_reconstruction(windows) as losses:
        windows(torch.randn(1, 3, 64, 64))
    assert len(losses) == 2


def test_errors():
    for options, message in (
        ({"keep_rate": 0.0}, r"`keep_rate` must be in \(0, 1\], got 0.0"),
        ({"keep_rate": 1.5}, r"`keep_rate` must be in \(0, 1\], got 1.5"),
        ({"reduce_c": 5}, "`reduce_c` must be in 1..4 .*, got 5"),
        ({"reduce_n": 0}, "`reduce_n` must be at least 1, got 0"),
        ({"coefficients": 0}, "`coefficients` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SparsifinerAttention(16, 4, **options)
    layer = make()
    x = torch.randn(2, 25, 24, dtype=torch.double)
    for bad in (torch.ones(2, 25, dtype=torch.bool), torch.ones(2, 24)):
        with pytest.raises(ValueError, match=r"`token_mask` must be bool \(2, 24\)"):
            layer.forward_forecast(x, token_mask=bad)
