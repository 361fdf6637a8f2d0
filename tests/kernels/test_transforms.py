"""`torch.func`, forward-mode AD, second derivatives and tracing of every kernel, compared to the reference."""

import pytest
import torch
from fixtures.interpreter import INTERPRETED
from torch.autograd import forward_ad

from visionattn.kernels import bilevel_routing_attention, na1d, na2d, na3d, scattered_linear_attention
from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d, sparse_depthwise_conv3d
from visionattn.kernels.sparse_conv.reference import dense_conv3d

REGIONS = torch.tensor([[[0, 1], [1, 2], [3, 2], [3, 0]]])
PADDING = torch.zeros(5, 4, dtype=torch.bool)
PADDING[3:, 1] = True
OFFSETS = torch.tensor([0, 3, 3, 8, 9])
COORDS = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1], [0, 2, 0, 1], [0, 2, 1, 1]])
NEIGHBORS = Neighbors.submanifold(COORDS, (3, 2, 2), (3, 3, 1))


def _maps(*shape, count=3):
    return [torch.randn(*shape, dtype=torch.double) for _ in range(count)]


def _dense(x, weight, backend):
    kernel = weight if weight.dim() == 4 else weight.permute(1, 2, 3, 4, 0)
    if backend == "reference":
        return dense_conv3d(x, COORDS, 1, (3, 2, 2), kernel, COORDS, padding=(1, 1, 0))
    return (sparse_depthwise_conv3d if weight.dim() == 4 else sparse_conv3d)(x, weight, NEIGHBORS, backend=backend)


CASES = {
    "na1d": (
        lambda q, k, v, backend: na1d(q, k, v, 3, 2, 2, True, backend=backend),
        lambda: [torch.randn(1, 7, n, 2, dtype=torch.double) for n in (4, 2, 2)],
    ),
    "na2d": (
        lambda q, k, v, rpb, backend: na2d(q, k, v, (3, 1), rpb=rpb, backend=backend),
        lambda: [*_maps(1, 4, 3, 2, 2), torch.randn(2, 5, 1, dtype=torch.double)],
    ),
    "na3d": (
        lambda q, k, v, x, y, backend: na3d(
            q, k, v, (1, 2, 3), additional_keys=x, additional_values=y, backend=backend, return_lse=True
        )[0],
        lambda: [*_maps(1, 2, 3, 3, 1, 2), *_maps(1, 2, 1, 2, count=2)],
    ),
    "routing": (
        lambda q, k, v, backend: bilevel_routing_attention(
            q, k, v, 2, 2, key_regions=REGIONS, padding_mask=PADDING, backend=backend
        ),
        lambda: _maps(1, 5, 4, 2, 2),
    ),
    "scattered": (
        lambda q, k, v, backend: scattered_linear_attention(q, k, v, OFFSETS, backend=backend),
        lambda: [x.abs() for x in _maps(9, 2, 2)],
    ),
    "sparse_conv": (_dense, lambda: [*_maps(5, 2, count=1), torch.randn(3, 3, 3, 1, 2, dtype=torch.double)]),
    "sparse_depthwise": (_dense, lambda: [*_maps(5, 2, count=1), torch.randn(3, 3, 1, 2, dtype=torch.double)]),
}
BACKENDS = ["torch", "triton"] if INTERPRETED else ["torch"]


@pytest.fixture(
    params=[(name, backend) for name in CASES for backend in BACKENDS],
    ids="-".join,
)
def case(request):
    """The kernel, the reference, their inputs, and a direction for each input."""
    name, backend = request.param
    torch.manual_seed(0)
    function, make = CASES[name]
    dtype = torch.float if backend == "triton" else torch.double
    inputs = tuple(x.to(dtype) for x in make())
    directions = tuple(torch.randn_like(x) for x in inputs)
    return lambda *x: function(*x, backend=backend), lambda *x: function(*x, backend="reference"), inputs, directions


def close(given, expected):
    rounding = {} if expected[0].dtype == torch.double else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(given, expected, **rounding)


def test_functional_gradients(case):
    kernel, reference, inputs, _ = case
    every = tuple(range(len(inputs)))

    def gradients(function):
        return torch.func.grad(lambda *x: function(*x).square().sum(), every)(*inputs)

    close(gradients(kernel), gradients(reference))


def test_forward_mode(case):
    kernel, reference, inputs, directions = case
    expected = torch.func.jvp(reference, inputs, directions)
    close(torch.func.jvp(kernel, inputs, directions), expected)
    with forward_ad.dual_level():
        out = kernel(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, directions, strict=True)))
        close(tuple(forward_ad.unpack_dual(out)), expected)
        # One input with a tangent is enough.
        first = kernel(forward_ad.make_dual(inputs[0], directions[0]), *inputs[1:])
        assert forward_ad.unpack_dual(first).tangent.abs().max() > 0


def test_vmap_of_gradients(case):
    kernel, reference, inputs, directions = case
    stacked = [torch.stack([x, t]) for x, t in zip(inputs, directions, strict=True)]
    if inputs[0].dim() == 3:  # the denominators of linear attention
        stacked = [x.abs() for x in stacked]
    close(torch.func.vmap(kernel)(*stacked), torch.stack([reference(*x) for x in zip(*stacked, strict=True)]))
    given = torch.func.vmap(torch.func.grad(lambda *x: kernel(*x).square().sum()))(*stacked)
    expected = [torch.func.grad(lambda *x: reference(*x).square().sum())(*x) for x in zip(*stacked, strict=True)]
    close(given, torch.stack(expected))


def test_second_derivatives(case):
    kernel, reference, inputs, directions = case

    def second(function):
        leaves = [x.clone().requires_grad_() for x in inputs]
        first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, directions, strict=True)), leaves)

    close(second(kernel), second(reference))


def test_batched_gradients(case):
    kernel, reference, inputs, _ = case
    upstream = torch.randn(2, *kernel(*inputs).shape, dtype=inputs[0].dtype)

    def batched(function):
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, upstream, is_grads_batched=True)

    close(batched(kernel), batched(reference))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_trace(case):
    kernel, _, inputs, directions = case
    with torch.no_grad():
        traced = torch.jit.trace(kernel, inputs)
        other = tuple(t.abs() for t in directions)
        close(traced(*other), kernel(*other))


def test_compiled_transforms_and_a_graph_without_them():
    """Compiled code calls the fast operator, unless a transform needs the differentiable implementation."""
    torch.manual_seed(0)
    q, t = _maps(1, 4, 4, 2, 2, count=2)
    targets = []

    def inspect(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(lambda x: na2d(x, x, x, 3), backend=inspect, fullgraph=True)(q)
    assert "visionattn.neighborhood_attention" in targets

    def attention(x, backend="torch"):
        return na2d(x, x, x, 3, backend=backend)

    compiled = torch.compile(lambda x, t: torch.func.jvp(attention, (x,), (t,)), backend="aot_eager", fullgraph=True)
    close(compiled(q, t), torch.func.jvp(lambda x: attention(x, "reference"), (q,), (t,)))
