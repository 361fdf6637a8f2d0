"""Spatial-reduction attention against dense masks."""

import pytest
import torch

from visionattn.layers.spatial_reduction import SpatialReductionAttention, fixed_sparse_mask, least_attended


def dense(layer, x, size, mask):
    """By the definition, with a mask of probabilities."""
    query, key, value = layer.project(x, size)
    scores = (query @ key.transpose(-2, -1)) * layer.scale
    return layer.merge(scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value)


@pytest.mark.parametrize(
    ("size", "reduction", "rate"),
    [((8, 8), 2, 2), ((7, 10), 2, 2), ((5, 3), 1, 2), ((9, 13), 4, 3), ((3, 3), 8, 2), ((1, 9), 1, 2)],
)
def test_fixed_sparse_groups_agree_with_the_dense_mask(size, reduction, rate):
    torch.manual_seed(0)
    layer = SpatialReductionAttention(12, 3, reduction, sparse_rate=rate).double()
    x = torch.randn(2, size[0] * size[1], 12, dtype=torch.float64, requires_grad=True)
    mask = fixed_sparse_mask(size, reduction, rate)
    got, want = layer(x, size, fixed_sparse=True), dense(layer, x, size, mask)
    assert torch.allclose(got, want, atol=1e-12)
    weight = torch.randn_like(got)
    (one,), (two,) = (torch.autograd.grad((y * weight).sum(), x) for y in (got, want))
    assert torch.allclose(one, two, atol=1e-12)


def test_fixed_sparse_mask_by_hand():
    # 4 x 6 pixels, cells of 2: the key grid is 2 x 3, so the third column of cells has the parity of the first
    mask = fixed_sparse_mask((4, 6), 2, 2).reshape(4, 6, 2, 3)
    assert mask[0, 0].nonzero().tolist() == [[0, 0], [0, 2]]
    assert mask[1, 3].nonzero().tolist() == [[0, 1]]
    assert mask[3, 5].nonzero().tolist() == [[1, 0], [1, 2]]


def test_queries_without_a_key_attend_to_all():
    assert fixed_sparse_mask((4, 4), 4, 2).all()  # one key only
    mask = fixed_sparse_mask((4, 8), 4, 2).reshape(4, 8, 2)  # keys of one row, two columns
    assert mask[0, 0].tolist() == [True, False]
    assert mask[0, 4].tolist() == [False, True]


def test_given_keys():
    torch.manual_seed(1)
    layer = SpatialReductionAttention(8, 2, 2).double()
    x = torch.randn(2, 6 * 4, 8, dtype=torch.float64)
    keep = torch.rand(2, 2, 24, 6) > 0.5
    keep[0, 0, 3] = False
    want = dense(layer, x, (6, 4), keep | ~keep.any(-1, keepdim=True))
    for form in (keep, keep.float(), keep.long()):
        assert torch.allclose(layer(x, (6, 4), keep=form), want, atol=1e-12)


def test_a_differentiable_mask_gives_the_same_numbers_and_a_gradient():
    torch.manual_seed(2)
    layer = SpatialReductionAttention(8, 2, 2).double()
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    keep = (torch.rand(1, 2, 24, 6) > 0.5).double()
    soft = keep.clone().requires_grad_()
    got = layer(x, (6, 4), keep=soft)
    assert torch.allclose(got, layer(x, (6, 4), keep=keep), atol=1e-12)
    got.square().sum().backward()
    chosen = keep.bool() & (keep.sum(-1, keepdim=True) > 1)
    assert (soft.grad[chosen] != 0).all()
    _, mask = layer.forward_with_mask(x, (6, 4), 0.5, differentiable=True)
    hard = layer.forward_with_mask(x, (6, 4), 0.5)[1]
    assert torch.equal(mask.detach().round().bool(), hard)
    assert torch.autograd.grad((mask * torch.randn_like(mask)).sum(), layer.q.weight)[0].abs().sum() > 0


def test_least_attended_keeps_the_smallest(monkeypatch):
    torch.manual_seed(3)
    query, key = torch.randn(2, 3, 20, 4), torch.randn(2, 3, 9, 4)
    mask = least_attended(query, key, 0.5, 0.25)
    assert (mask.sum(-1) == 2).all()
    probability = ((query @ key.transpose(-2, -1)) * 0.5).softmax(-1)
    kept = probability.masked_fill(~mask, 0).amax(-1)
    assert (kept < probability.masked_fill(mask, 2).amin(-1)).all()
    monkeypatch.setattr("visionattn.layers.spatial_reduction.CHUNK", 100)  # several pieces
    assert torch.equal(least_attended(query, key, 0.5, 0.25), mask)
    assert (least_attended(query, key, 0.5, 0.01).sum(-1) == 1).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="multiple of `num_heads`=5, got 8"):
        SpatialReductionAttention(8, 5)
    layer = SpatialReductionAttention(8, 2, 2)
    with pytest.raises(ValueError, match=r"`keep` must have shape \[1, 2 or 1, 16, 4\]"):
        layer(torch.randn(1, 16, 8), (4, 4), keep=torch.ones(1, 2, 16, 16))
