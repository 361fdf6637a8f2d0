"""NaN or infinity in one key or value reaches only the queries that attend to it, forward and backward."""

import pytest
import torch

from visionattn.kernels import bilevel_routing_attention, na1d, na2d, na3d, route_regions, scattered_linear_attention
from visionattn.kernels.nonfinite import masked_product

REGIONS = torch.tensor([[[0, 1], [1, 2], [3, 2], [3, 0]]]).expand(2, -1, -1)
OFFSETS = torch.tensor([0, 3, 3, 300, 900])
BIAS = torch.linspace(-1, 1, 2 * 9 * 9).view(2, 9, 9)

CASES = {  # function, shape, position of the key
    "one image": (lambda q, k, v, b: na2d(q, k, v, 5, backend=b), (1, 14, 15, 2, 8), (0, 3, 4, 1)),
    "images": (lambda q, k, v, b: na2d(q, k, v, 5, backend=b), (2, 14, 15, 2, 8), (1, 13, 14, 1)),
    "tiles": (lambda q, k, v, b: na2d(q, k, v, 3, dilation=2, backend=b), (1, 30, 31, 2, 8), (0, 9, 8, 0)),
    "bias": (lambda q, k, v, b: na2d(q, k, v, 5, rpb=BIAS.to(q), backend=b), (1, 24, 24, 2, 8), (0, 9, 8, 0)),
    "causal": (lambda q, k, v, b: na1d(q, k, v, 5, 2, 2, True, backend=b), (2, 41, 2, 8), (1, 12, 0)),
    "three axes": (
        lambda q, k, v, b: na3d(q, k, v, 3, return_lse=True, backend=b)[0], (1, 5, 6, 7, 2, 4), (0, 2, 2, 2, 1)
    ),
    "regions": (
        lambda q, k, v, b: bilevel_routing_attention(q, k, v, 2, 2, key_regions=REGIONS, backend=b),
        (2, 7, 8, 2, 8),
        (1, 2, 3, 0),
    ),
    "scattered": (
        lambda q, k, v, b: scattered_linear_attention(q.abs(), k.abs(), v, OFFSETS, backend=b), (900, 2, 8), (200, 1)
    ),
}  # fmt: skip


def differing(given, expected):
    """Queries whose outputs differ."""
    return ((given - expected).abs() > 0).any(-1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_one_key_or_value(name, backend, value):
    torch.manual_seed(0)
    function, shape, position = CASES[name]
    inputs = list(torch.randn(3, *shape, dtype=torch.double))
    clean = function(*inputs, backend)
    for which in (1, 2):
        changed = [x.clone() for x in inputs]
        changed[which][(*position, 1)] += 3
        sees = differing(function(*changed, backend), clean)
        assert 0 < sees.sum() < sees.numel()
        changed[which][(*position, 1)] = value
        out = function(*changed, backend)
        torch.testing.assert_close(out[~sees], clean[~sees])
        if value != value or which == 2:
            assert not out[sees].isfinite().all(-1).any()


@pytest.mark.parametrize("name", [name for name in CASES if name != "scattered"])
def test_gradients_stay_near_the_key(name):
    """Those of the queries that do not see it; a loss on these leaves the gradients of far keys unchanged."""
    torch.manual_seed(0)
    function, shape, position = CASES[name]
    inputs = list(torch.randn(3, *shape, dtype=torch.double))
    clean = function(*inputs, "torch")
    changed = [x.clone() for x in inputs]
    changed[1][(*position, 1)] = torch.nan
    sees = ~function(*changed, "torch").isfinite().all(-1)

    def gradients(tensors):
        leaves = [x.clone().requires_grad_() for x in tensors]
        return torch.autograd.grad(function(*leaves, "torch")[~sees].square().sum(), leaves)

    assert clean.isfinite().all()
    for index, (given, expected) in enumerate(zip(gradients(changed), gradients(inputs), strict=True)):
        finite = given.isfinite().all(-1)
        torch.testing.assert_close(given[finite], expected[finite])
        if index == 0:
            assert torch.equal(~finite, sees)
        assert finite.sum() > finite.numel() // 3


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_region_with_such_a_key_is_selected_last(value, backend):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 14, 14, 2, 8)
    k[0, 3, 4, 0, 1] = value
    region = 3 // 2 * 7 + 4 // 2
    index, affinities = route_regions(q, k, 7, 48, backend=backend)
    assert not (index == region).any()
    assert affinities.isfinite().all()
    out = bilevel_routing_attention(q, k, v, 7, 4, backend=backend)
    assert out.isfinite().all()


@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_padding_may_be_nan(topk, backend):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 6, 6, 2, 4)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:, 5] = True
    expected = bilevel_routing_attention(q, k, v, 2, topk, padding_mask=mask, backend=backend)
    k[:, :, 5], v[:, :, 5] = torch.nan, torch.inf
    out = bilevel_routing_attention(q, k, v, 2, topk, padding_mask=mask, backend=backend)
    torch.testing.assert_close(out, expected)


def test_product_that_skips_pairs():
    inf, nan = torch.inf, torch.nan
    weight = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [-1.0, 0.0, 2.0]])
    values = torch.tensor([[nan, inf, 1.0, inf], [inf, 2.0, 2.0, 4.0], [1.0, -inf, 3.0, inf]])
    expected = torch.tensor([[nan, nan, 2.0, inf], [inf, 2.0, 2.0, 4.0], [nan, -inf, 5.0, nan]])
    torch.testing.assert_close(masked_product(weight, values, weight != 0), expected, equal_nan=True)
