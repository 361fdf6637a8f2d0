"""Attention over distance, with weights made by hand."""

import pytest
import timm
import torch

import visionattn  # noqa: F401  (registers the models)
from visionattn.inference.explain.attention import record_attention
from visionattn.inference.explain.rings import offset_shares, ring_shares, spread_places

ALL = [(row, column) for row in range(5) for column in range(7)]


def test_uniform_attention():
    share, single = ring_shares(torch.full((35, 2, 5, 7), 0.01), ALL)
    assert share.shape == single.shape == (2, 7)
    torch.testing.assert_close(share.sum(1), torch.ones(2))
    torch.testing.assert_close(single, torch.full((2, 7), 1 / 35))
    offsets = offset_shares(torch.full((35, 2, 5, 7), 0.01), ALL)[1]
    torch.testing.assert_close(offsets, torch.full((2, 9, 13), 1 / 35))
    expected = [sum(max(abs(a - c), abs(b - d)) == 1 for c, d in ALL) for a, b in ALL]
    assert share[0, 0].item() == pytest.approx(1 / 35)
    assert share[0, 1].item() == pytest.approx(sum(expected) / 35**2, rel=1e-5)


def test_rings_and_offsets_of_single_keys():
    places = [(0, 0), (2, 3), (4, 6)]
    weights = torch.zeros(3, 2, 5, 7)
    for query, (row, column) in enumerate(places):
        weights[query, 0, row, column] = 0.7  # head 0 attends to itself; 0.3 is left for a class token
    weights[0, 1, 0, 2] = weights[1, 1, 2, 5] = weights[2, 1, 4, 4] = 1  # two to the right, or to the left at the end
    share, single = ring_shares(weights, places)
    torch.testing.assert_close(share, torch.eye(7)[[0, 2]])
    assert single[0, 0] == 1
    # patches in ring 2: 5 for the corners, and 5 * 5 - 3 * 3 in the middle
    assert single[1, 2].item() == pytest.approx(3 / (5 + 16 + 5))
    offsets, single = offset_shares(weights, places)
    assert offsets.shape == (2, 9, 13)
    torch.testing.assert_close(offsets.sum((1, 2)), torch.ones(2))
    assert offsets[0, 4, 6] == 1
    assert offsets[1, 4, 8].item() == pytest.approx(2 / 3)
    assert offsets[1, 4, 4].item() == pytest.approx(1 / 3)
    assert single[0, 4, 6] == 1
    assert single[1, 4, 8] == 1  # the last query is at the end of its row
    assert single[1, 4, 4] == 0.5


MODELS = {
    "vit_tiny_patch16_224": {"depth": 1, "img_size": 96},
    "swin_tiny_patch4_window7_224": {"depths": (2,), "img_size": 56, "window_size": 7},
    "dinat_pico": {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 4)},
    "biformer_tiny": {"depths": (1, 1, 1, 1), "num_regions": 2, "topks": (1, 2, 3, -2)},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)},
}


@pytest.mark.parametrize("name", MODELS)
def test_shares_of_models_sum_to_one(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2, **MODELS[name]).eval()
    side = MODELS[name].get("img_size", 64)
    for call in record_attention(model, torch.randn(1, 3, side, side)):
        places = spread_places(call.grid, 3)
        weights = call.maps(places)
        assert weights.shape == (9, call.heads, *call.grid)
        torch.testing.assert_close(weights[4], call.weights(*places[4]))
        ones = torch.ones(call.heads)
        torch.testing.assert_close(ring_shares(weights, places)[0].sum(1), ones, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(offset_shares(weights, places)[0].sum((1, 2)), ones, rtol=1e-4, atol=1e-4)


def test_rings_of_a_neighborhood_end_at_its_reach():
    torch.manual_seed(0)
    model = timm.create_model("nat_mini", num_classes=2, depths=(1, 1, 1, 1)).eval()
    call = record_attention(model, torch.randn(1, 3, 96, 96))[0]
    places = [(12, 12), (9, 14)]  # no border is near
    share, _ = ring_shares(call.maps(places), places)
    assert (share[:, :4] > 0).all()
    torch.testing.assert_close(share[:, 4:], torch.zeros(call.heads, 20))
    used = offset_shares(call.maps(places), places)[0][0].nonzero() - 23
    assert len(used) == 49
    assert used.abs().max() == 3


def test_shifted_windows_of_swin_by_hand():
    """Attention of the second block, from windows cut out of the rolled map."""
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=2, depths=(2,), img_size=32, window_size=4
    ).eval()
    seen, image = [], torch.randn(1, 3, 32, 32)
    block = model.layers[0].blocks[1]
    assert block.shift_size == (2, 2)
    hook = block.attn.qkv.register_forward_hook(lambda m, inputs, output: seen.append(output))
    call = record_attention(model, image)[1]
    hook.remove()
    assert (call.name, call.grid) == ("layers.0.blocks.1.attn", (8, 8))
    # (3, 3) of the map is (1, 1) of the rolled map, in window 0, which holds rows and columns 2 to 5 of the map
    query, key, _ = seen[0][0].view(16, 3, call.heads, -1).permute(1, 2, 0, 3)
    logits = query[:, 5] * block.attn.scale
    expected = torch.einsum("hd,hkd->hk", logits, key) + block.attn._get_rel_pos_bias()[0, :, 5]
    found = call.weights(3, 3)
    torch.testing.assert_close(found[:, 2:6, 2:6].flatten(1), expected.softmax(-1), rtol=1e-4, atol=1e-6)
    assert found.sum().item() == pytest.approx(call.heads, rel=1e-4)
    # (0, 0) is (6, 6) of the rolled map: only the four patches at its corner are not masked out
    corner = call.weights(0, 0)
    torch.testing.assert_close(corner[:, :2, :2].sum((1, 2)), torch.ones(call.heads), rtol=1e-4, atol=1e-4)
