"""Rotary embeddings over one to three axes."""

import pytest
import torch
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat

from visionattn.layers import AxialRope


@pytest.mark.parametrize(
    "options",
    [
        {"in_pixels": False},
        {"in_pixels": False, "temperature": 100.0, "grid_offset": 0.5},
        {"in_pixels": False, "ref_feat_shape": [7, 7], "grid_indexing": "xy"},
        {"in_pixels": True, "max_res": 64},
    ],
)
def test_equals_timm_on_two_axes(options):
    theirs = RotaryEmbeddingCat(16, **options)
    for shape in ([5, 8], [9, 3]):
        assert torch.equal(AxialRope(16, 2, **options).get_embed(shape), theirs.get_embed(shape))


@pytest.mark.parametrize(("dim", "axes"), [(8, 1), (8, 2), (12, 3), (16, 3)])
@pytest.mark.parametrize("rotate_half", [False, True])
def test_products_depend_on_offsets_only(dim, axes, rotate_half):
    """What a rotary embedding is for; with 16 channels over 3 axes, the channels that are left over stay."""
    torch.manual_seed(0)
    rope = AxialRope(dim, axes, temperature=50.0, rotate_half=rotate_half)
    shape = [4, 5, 3][:axes]
    embed = rope.get_embed(shape)
    assert embed.shape == (torch.Size(shape).numel(), 2 * dim)
    q, k = torch.randn(2, dim)
    rotated_q, rotated_k = (
        apply_rot_embed_cat(x.expand(len(embed), dim), embed, half=rotate_half).view(*shape, dim) for x in (q, k)
    )
    first, second = (0,) * axes, (1,) * axes
    for step in ((0,) * axes, (2, 1, 1)[:axes], (0, 2, 0)[:axes]):
        moved = tuple(a + b for a, b in zip(second, step, strict=True))
        torch.testing.assert_close(rotated_q[first] @ rotated_k[step], rotated_q[second] @ rotated_k[moved])
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm().expand(shape))
    assert not torch.allclose(rotated_q[first] @ rotated_k[second], q @ k)


def test_state_dict_stays_empty_and_half_precision_keeps_the_angles():
    rope = AxialRope(8, 2)
    assert rope.state_dict() == {}
    assert torch.equal(rope.bfloat16().get_embed([3, 3]), AxialRope(8, 2).get_embed([3, 3]))


@pytest.mark.parametrize(("dim", "axes"), [(7, 1), (4, 3)])
def test_too_few_channels(dim, axes):
    with pytest.raises(ValueError, match=f"`dim` must be even and at least {2 * axes} .*, got {dim}"):
        AxialRope(dim, axes)
