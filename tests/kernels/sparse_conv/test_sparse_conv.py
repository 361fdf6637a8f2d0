"""Sparse convolution against dense convolution, with gradients, over a random sweep."""

import pytest
import torch

from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d, sparse_depthwise_conv3d
from visionattn.kernels.sparse_conv.reference import dense_conv3d


def voxels(seed: int, count: int, shape: tuple[int, int, int], batch: int = 2) -> torch.Tensor:
    """Different voxels in a random order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(batch * shape[0] * shape[1] * shape[2], generator=generator)[:count]
    parts = []
    for size in reversed(shape):
        parts.append(cells % size)
        cells = cells // size
    return torch.stack([cells, *reversed(parts)], 1)


SUBMANIFOLD = [
    ((6, 9, 11), (3, 3, 3), 150),
    ((4, 17, 6), (1, 13, 1), 120),
    ((4, 6, 17), (1, 1, 13), 120),
    ((1, 5, 5), (3, 5, 1), 12),
    ((5, 5, 5), (1, 1, 1), 40),
    ((3, 4, 5), (3, 3, 3), 120),  # every voxel there is
]


@pytest.mark.parametrize(("shape", "size", "count"), SUBMANIFOLD)
@pytest.mark.parametrize("depthwise", [False, True])
def test_submanifold_is_the_dense_convolution_at_its_voxels(shape, size, count, depthwise):
    torch.manual_seed(count)
    coords = voxels(count, count, shape)
    neighbors = Neighbors.submanifold(coords, shape, size)
    assert neighbors.coords is coords
    x = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*size, 5, dtype=torch.float64) if depthwise else torch.randn(3, *size, 5, dtype=torch.float64)
    weight.requires_grad_()
    layout = weight if depthwise else weight.permute(1, 2, 3, 4, 0)
    expected = dense_conv3d(x, coords, 2, shape, layout, coords, padding=[k // 2 for k in size])
    out = (sparse_depthwise_conv3d if depthwise else sparse_conv3d)(x, weight, neighbors)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, weight), upstream)
    wanted = torch.autograd.grad(expected, (x, weight), upstream)
    torch.testing.assert_close(got, wanted)


STRIDED = [
    ((9, 8, 8), (3, 1, 1), (2, 1, 1), 0, 130),
    ((8, 11, 9), 3, 2, 1, 200),
    ((5, 7, 6), (2, 3, 2), (1, 2, 2), (0, 1, 0), 60),
    ((4, 4, 4), 4, 4, 0, 5),
]


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "count"), STRIDED)
def test_strided_is_the_dense_convolution_where_it_meets_voxels(shape, size, stride, padding, count):
    torch.manual_seed(count)
    coords = voxels(count, count, shape)
    neighbors = Neighbors.strided(coords, shape, size, stride, padding)
    kernel = (size,) * 3 if isinstance(size, int) else size
    x = torch.randn(count, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, *kernel, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64)
    layout = weight.permute(1, 2, 3, 4, 0)
    expected = dense_conv3d(x, coords, 2, shape, layout, neighbors.coords, stride, padding)
    out = sparse_conv3d(x, weight, neighbors, bias)
    torch.testing.assert_close(out, expected + bias)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, weight), upstream)
    torch.testing.assert_close(got, torch.autograd.grad(expected, (x, weight), upstream))
    # exactly the places where the kernel meets a voxel
    ones = torch.ones(count, 1, dtype=torch.float64)
    touched = torch.nn.functional.conv3d(
        torch.zeros(2, 1, *shape, dtype=torch.float64).index_put(
            (coords[:, 0], torch.zeros_like(coords[:, 0]), *coords[:, 1:].unbind(1)), ones[:, 0]
        ),
        torch.ones(1, 1, *kernel, dtype=torch.float64), None, stride, padding,
    )[:, 0]  # fmt: skip
    assert torch.equal(touched.nonzero(), neighbors.coords)
    assert tuple(touched.shape[1:]) == neighbors.spatial_shape


def test_gradcheck():
    coords = voxels(0, 20, (3, 4, 4), 1)
    neighbors = Neighbors.submanifold(coords, (3, 4, 4), 3)
    x = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: sparse_conv3d(a, b, neighbors), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_follow_the_double(dtype):
    torch.manual_seed(0)
    coords = voxels(1, 100, (4, 6, 6))
    neighbors = Neighbors.submanifold(coords, (4, 6, 6), 3)
    x, weight = torch.randn(100, 8).to(dtype), (torch.randn(8, 3, 3, 3, 8) / 10).to(dtype)
    out = sparse_conv3d(x, weight, neighbors)
    assert out.dtype == dtype
    expected = sparse_conv3d(x.double(), weight.double(), neighbors)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_autocast_and_repeats():
    torch.manual_seed(0)
    coords = voxels(1, 100, (4, 6, 6))
    neighbors = Neighbors.submanifold(coords, (4, 6, 6), 3)
    x, weight = torch.randn(100, 8, requires_grad=True), torch.randn(8, 3, 3, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_conv3d(x, weight, neighbors).dtype == torch.bfloat16
        assert sparse_depthwise_conv3d(x, weight[0], neighbors).dtype == torch.bfloat16
    runs = []
    for _ in range(2):
        out = sparse_conv3d(x, weight, neighbors)
        runs.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_voxels_and_one():
    for count in (0, 1):
        coords = torch.zeros(count, 4, dtype=torch.int64)
        x = torch.randn(count, 3, requires_grad=True)
        weight = torch.randn(5, 3, 3, 3, 3, requires_grad=True)
        for neighbors in (Neighbors.submanifold(coords, (2, 2, 2), 3), Neighbors.strided(coords, (2, 2, 2), 3, 2, 1)):
            out = sparse_conv3d(x, weight, neighbors)
            assert out.shape == (count, 5)
            out.sum().backward()
        assert weight.grad.any() == bool(count)


def test_wrong_arguments():
    coords = voxels(0, 10, (3, 3, 3))
    neighbors = Neighbors.submanifold(coords, (3, 3, 3), 3)
    cases = [
        (lambda: Neighbors.submanifold(coords, (3, 3, 3), (1, 2, 1)), r"`kernel_size` must be odd, got \(1, 2, 1\)"),
        (lambda: Neighbors.submanifold(coords, (3, 3), 3), r"`spatial_shape` must be one or three .* got \(3, 3\)"),
        (lambda: Neighbors.submanifold(coords, (2, 3, 3), 3), "`coords` must be inside spatial_shape"),
        (lambda: Neighbors.submanifold(coords[[0, 0]], (3, 3, 3), 3), "`coords` must be unique"),
        (lambda: Neighbors.submanifold(coords.int(), (3, 3, 3), 3), r"must be int64 \[N, 4\]"),
        (lambda: Neighbors.strided(coords, (3, 3, 3), 5), "`kernel_size` must fit into spatial_shape"),
        (lambda: Neighbors.strided(coords, (3, 3, 3), 3, padding=-1), "`padding` must be .* got -1"),
        (
            lambda: sparse_conv3d(torch.randn(9, 2), torch.randn(2, 3, 3, 3, 2), neighbors),
            "must have 10 rows",
        ),
        (lambda: sparse_conv3d(torch.randn(10, 2), torch.randn(2, 3, 3, 1, 2), neighbors), "`weight` must have"),
        (
            lambda: sparse_depthwise_conv3d(torch.randn(10, 2), torch.randn(3, 3, 3, 1), neighbors),
            "`weight` must have",
        ),
        (lambda: sparse_conv3d(torch.ones(10, 2).long(), torch.randn(2, 3, 3, 3, 2), neighbors), "must be floating"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
