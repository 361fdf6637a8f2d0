"""Attention read off as a derivative, against matrices formed by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F

import visionattn  # noqa: F401  (registers the models)
from visionattn.inference.explain.attention import record_attention
from visionattn.inference.explain.layercam import class_relevance
from visionattn.inference.explain.rings import mean_distance

FUSED = F.scaled_dot_product_attention


def small(name: str, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval()


DINAT = dict(depths=(1, 1, 1, 1), embed_dim=16, num_heads=(1, 2, 4, 4))


def test_weights_of_a_vit_are_its_softmax():
    model = small("vit_tiny_patch16_224", depth=2, img_size=64)
    seen = []
    image = torch.randn(1, 3, 64, 64)
    hook = model.blocks[1].attn.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    calls = record_attention(model, image)
    hook.remove()
    assert [(c.name, c.grid, c.heads, c.prefix) for c in calls] == [
        ("blocks.0.attn", (4, 4), 3, 1), ("blocks.1.attn", (4, 4), 3, 1),
    ]  # fmt: skip
    attn = model.blocks[1].attn
    q, k, _ = attn.qkv(seen[0]).reshape(1, 17, 3, 3, 64).permute(2, 0, 3, 1, 4).unbind(0)
    expected = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)[0]
    got = calls[1].weights(2, 1)
    torch.testing.assert_close(got, expected[:, 1 + 9, 1:].reshape(3, 4, 4), rtol=1e-4, atol=1e-6)


def test_weights_of_a_neighborhood_stay_in_it():
    model = small("dinat_pico", **DINAT)
    calls = record_attention(model, torch.randn(1, 3, 96, 128))
    assert [c.grid for c in calls] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    weights = calls[0].weights(12, 20)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(1))
    window = model.levels[0].blocks[0].attn
    dilation = window.dilation[0] if not window.auto_dilation else 3
    rows, columns = weights[0].nonzero(as_tuple=True)
    assert len(rows) == 49
    assert set(((rows - 12) % dilation).tolist()) == set(((columns - 20) % dilation).tolist()) == {0}
    with torch.no_grad():
        mixed = torch.einsum("hyx,hyxd->hd", weights, calls[0].value.reshape(1, 24, 32, -1))
        torch.testing.assert_close(mixed, calls[0].run(calls[0].value)[:, 12 * 32 + 20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("biformer_tiny", dict(depths=(1, 1, 1, 1), num_regions=4), (20, 26)),
        ("davit_tiny", dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2)), (20, 26)),
    ],
)
def test_padding_is_not_part_of_the_map(name, options, grid):
    calls = record_attention(small(name, **options), torch.randn(1, 3, 80, 104))
    assert len(calls) == 4
    assert calls[0].grid == grid
    weights = calls[0].weights(19, 25)
    assert weights.shape == (calls[0].heads, *grid)
    assert (weights >= -1e-6).all()
    assert (weights.sum((1, 2)) <= 1 + 1e-4).all()
    assert weights.max() > 0


def test_davit_windows_are_put_in_their_places():
    model = small("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2))
    call = record_attention(model, torch.randn(1, 3, 112, 112))[0]
    rows, columns = call.weights(9, 22)[0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 21, 27)


def test_distance():
    model = small("dinat_pico", **DINAT)
    image = torch.randn(1, 3, 128, 128)
    calls = record_attention(model, image)
    distance = mean_distance(calls[0], (128, 128))
    assert distance.shape == (1,)
    reach = 3 * 4 * max(1, max(model.levels[0].blocks[0].attn.dilation)) * 2**0.5
    assert 0 < distance.item() < 4 * reach
    uniform = small("vit_tiny_patch16_224", depth=1, img_size=64)
    torch.nn.init.zeros_(uniform.blocks[0].attn.qkv.weight)
    torch.nn.init.zeros_(uniform.blocks[0].attn.qkv.bias)
    call = record_attention(uniform, torch.randn(1, 3, 64, 64))[0]
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).view(-1, 2) * 16
    expected = torch.cdist(places, places).mean()
    torch.testing.assert_close(mean_distance(call, (64, 64)), expected.expand(3))


def test_relevance_is_a_map_of_the_picture():
    model = small("dinat_pico", **DINAT)
    image = torch.randn(1, 3, 64, 96)
    heat = class_relevance(model, image, 2)
    assert heat.shape == (64, 96)
    assert heat.min() >= 0
    assert heat.max() == 1
    bare = timm.create_model("dinat_pico", num_classes=0, **DINAT).eval()
    assert class_relevance(bare, image).isfinite().all()


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match=r"must be \[1, C, H, W\]"):
        record_attention(small("dinat_pico", **DINAT), torch.randn(2, 3, 64, 64))
    assert record_attention(small("resnet10t"), torch.randn(1, 3, 64, 64)) == []
    call = record_attention(small("dinat_pico", **DINAT), torch.randn(1, 3, 64, 64))[0]
    with pytest.raises(ValueError, match=r"outside the grid \(16, 16\)"):
        call.weights(16, 0)
    assert F.scaled_dot_product_attention is FUSED  # put back
