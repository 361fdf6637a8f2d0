"""Operators with random arguments, sound and unsound: the reference's result, or one of the documented errors."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from visionattn.errors import BackendError
from visionattn.kernels.neighborhood.api import na1d, na2d, na3d
from visionattn.kernels.routing.api import bilevel_routing_attention, route_regions
from visionattn.kernels.scattered.api import scattered_linear_attention
from visionattn.kernels.sparse_conv.api import sparse_conv3d, sparse_depthwise_conv3d
from visionattn.kernels.sparse_conv.neighbors import Neighbors
from visionattn.kernels.sparse_conv.reference import dense_conv3d
from visionattn.layers.pose_attention import ATTENTIONS, PoseBlock, PoseBlocks

REFUSALS = (ValueError, TypeError, BackendError)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
DTYPES = st.sampled_from(list(TOLERANCE))
SCALES = st.sampled_from([None, 0.0, 1.0, 0.125, -0.5, 2])
WRONG = st.sampled_from(
    [None, "3", "x", 2.5, -1, 0, 99, 10**20, (), (3,), [3, 3], (3, 3, 3, 3), [[3]], True, {}, 3j, float("nan"), b"3",
     torch.tensor(3), torch.tensor([3, 3])]
)  # fmt: skip
CHANGES = st.sampled_from(["more axes", "fewer axes", "longer", "empty", "int", "half", "complex", "meta", "bool"])


def _changed(x: Tensor, change: str, axis: int) -> Tensor:
    """A tensor that no longer fits the others."""
    axis = axis % x.dim() if x.dim() else 0
    if change == "more axes":
        return x.unsqueeze(axis)
    if change == "fewer axes":
        return x.select(axis, 0) if x.dim() and x.shape[axis] else x.sum()
    if change == "longer":
        return torch.cat([x, x], axis) if x.dim() else x
    if change == "empty":
        return x.narrow(axis, 0, 0) if x.dim() else x
    kinds = {"int": torch.int32, "half": torch.float16, "complex": torch.complex64, "bool": torch.bool}
    return x.to("meta") if change == "meta" else x.to(kinds[change])


@st.composite
def spoilers(draw: st.DrawFn, tensors: tuple[str, ...], others: tuple[str, ...]) -> dict[str, Any]:
    """Up to two arguments to spoil: tensors by (change, axis), others by a value."""
    found: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            found[draw(st.sampled_from(tensors))] = (draw(CHANGES), draw(st.integers(0, 5)))
        else:
            found[draw(st.sampled_from(others))] = draw(WRONG)
    return found


def _spoil(arguments: dict[str, Any], spoiled: dict[str, Any], tensors: tuple[str, ...]) -> dict[str, Any]:
    changed = dict(arguments)
    for name, value in spoiled.items():
        if name in tensors:
            if changed.get(name) is not None:
                changed[name] = _changed(changed[name], *value)
        else:
            changed[name] = value
    return changed


def _random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _exact(arguments: dict[str, Any]) -> dict[str, Any]:
    floats = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return arguments | {name: x.double() for name, x in floats.items()}


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert found.isfinite().all()
    if found.numel():
        assert (found.double() - expected).abs().max() <= TOLERANCE[dtype] * (1 + expected.abs().max())


# --- neighborhood attention ------------------------------------------------------------------------------------------

NA_TENSORS = ("query", "key", "value", "rpb", "additional_keys", "additional_values")
NA_OTHERS = ("kernel_size", "stride", "dilation", "is_causal", "scale", "backend")


@st.composite
def neighborhoods(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    axes = draw(st.tuples(*[st.integers(1, (40, 9, 5)[rank - 1])] * rank))
    kernel = tuple(draw(st.integers(1, min(n, 7))) for n in axes)
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    dilation = tuple(draw(st.integers(1, n // k)) for n, k in zip(axes, kernel, strict=True))
    return {
        "rank": rank,
        "axes": axes,
        "geometry": {"kernel_size": kernel, "stride": stride, "dilation": dilation},
        "is_causal": draw(st.just(False) | st.tuples(*[st.booleans()] * rank)),
        "batch": draw(st.integers(0, 2)),
        "heads": (draw(st.integers(1, 2)), draw(st.integers(1, 3))),
        "dims": (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        "bias": draw(st.booleans()),
        "extra": draw(st.integers(0, 2)),
        "scale": draw(SCALES),
        "dtype": draw(DTYPES),
        "seed": draw(st.integers(0, 9)),
        "return_lse": draw(st.booleans()),
    }


def _neighborhood(case: dict[str, Any]) -> dict[str, Any]:
    batch, axes, (groups, per), (d, dv) = case["batch"], case["axes"], case["heads"], case["dims"]
    make = lambda shape, n: _random(shape, case["dtype"], case["seed"] + n)  # noqa: E731
    kernel, causal = case["geometry"]["kernel_size"], case["is_causal"]
    bias = case["bias"] and all(k % 2 for k in kernel) and not (causal and any(causal))
    return {
        "query": make((batch, *axes, groups * per, d), 0),
        "key": make((batch, *axes, groups, d), 1),
        "value": make((batch, *axes, groups, dv), 2),
        **case["geometry"],
        "is_causal": causal,
        "scale": case["scale"],
        "rpb": make((groups * per, *(2 * k - 1 for k in kernel)), 3) if bias else None,
        "additional_keys": make((batch, case["extra"], groups, d), 4) if case["extra"] else None,
        "additional_values": make((batch, case["extra"], groups, dv), 5) if case["extra"] else None,
        "return_lse": case["return_lse"],
    }


NO_BATCH = {"rank": 1, "axes": (1,), "geometry": {"kernel_size": (1,), "stride": (1,), "dilation": (1,)}, "batch": 0,
            "is_causal": False, "heads": (1, 1), "dims": (1, 1), "bias": False, "extra": 1, "scale": None,
            "dtype": torch.float64, "seed": 0, "return_lse": False}  # fmt: skip


@example(case=NO_BATCH)
@given(case=neighborhoods())
def test_neighborhood_attention(case):
    arguments = _neighborhood(case)
    operator = (na1d, na2d, na3d)[case["rank"] - 1]
    found, expected = operator(**arguments), operator(**_exact(arguments), backend="reference")
    pairs = zip(found, expected, strict=True) if case["return_lse"] else [(found, expected)]
    for one, other in pairs:
        _agree(one, other, case["dtype"])


@given(case=neighborhoods(), spoiled=spoilers(NA_TENSORS, NA_OTHERS), rank=st.integers(1, 3))
def test_neighborhood_attention_with_wrong_arguments(case, spoiled, rank):
    """Of any rank: the operator of the case, or another one."""
    arguments = _spoil(_neighborhood(case), spoiled, NA_TENSORS)
    try:
        found = (na1d, na2d, na3d)[rank - 1](**arguments)
    except REFUSALS:
        return
    out = found[0] if case["return_lse"] else found
    query, value = arguments["query"], arguments["value"]
    assert out.shape == (*query.shape[:-1], value.shape[-1])
    assert out.dtype == query.dtype


# --- bi-level routing attention --------------------------------------------------------------------------------------

ROUTING_TENSORS = ("query", "key", "value", "padding_mask", "key_regions")
ROUTING_OTHERS = ("num_regions", "topk", "scale", "backend")


@st.composite
def routings(draw: st.DrawFn) -> dict[str, Any]:
    regions = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return {
        "map": (draw(st.integers(1, 11)), draw(st.integers(1, 11))),
        "regions": regions,
        "topk": draw(st.integers(1, regions[0] * regions[1])),
        "batch": draw(st.integers(0, 2)),
        "heads": draw(st.integers(1, 3)),
        "dims": (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        "padded": draw(st.sampled_from([None, 0.2, 0.9, 1.0])),
        "scale": draw(SCALES),
        "dtype": draw(DTYPES),
        "seed": draw(st.integers(0, 9)),
    }


def _routing(case: dict[str, Any]) -> dict[str, Any]:
    batch, (height, width), heads, (d, dv) = case["batch"], case["map"], case["heads"], case["dims"]
    make = lambda dim, n: _random((batch, height, width, heads, dim), case["dtype"], case["seed"] + n)  # noqa: E731
    mask = None
    if case["padded"] is not None:
        generator = torch.Generator().manual_seed(case["seed"])
        mask = torch.rand(batch, height, width, generator=generator) < case["padded"]
    return {
        "query": make(d, 0), "key": make(d, 1), "value": make(dv, 2), "num_regions": case["regions"],
        "topk": case["topk"], "scale": case["scale"], "padding_mask": mask,
    }  # fmt: skip


EMPTY_MAPS = {"map": (1, 1), "regions": (1, 1), "topk": 1, "batch": 0, "heads": 1, "dims": (1, 1), "padded": None,
              "scale": None, "dtype": torch.float64, "seed": 0}  # fmt: skip


@example(case=EMPTY_MAPS)
@given(case=routings())
def test_routing_attention(case):
    """The routing may tie, so the reference attends to the regions that were found; their products are the best."""
    arguments = _routing(case)
    found, regions = bilevel_routing_attention(**arguments, return_routing=True)
    exact = _exact(arguments)
    _agree(found, bilevel_routing_attention(**exact, key_regions=regions, backend="reference"), case["dtype"])
    route = {k: exact[k] for k in ("query", "key", "num_regions", "topk", "padding_mask")}
    ours, best = route_regions(**route)[1], route_regions(**route, backend="reference")[1]
    torch.testing.assert_close(ours, best, rtol=1e-9, atol=1e-9)


@given(case=routings(), spoiled=spoilers(ROUTING_TENSORS, ROUTING_OTHERS), given_regions=st.booleans())
def test_routing_attention_with_wrong_arguments(case, spoiled, given_regions):
    arguments = _routing(case)
    if given_regions:
        count = case["regions"][0] * case["regions"][1]
        arguments["key_regions"] = torch.arange(case["topk"]).expand(case["batch"], count, case["topk"])
    arguments = _spoil(arguments, spoiled, ROUTING_TENSORS)
    try:
        out = bilevel_routing_attention(**arguments)
    except REFUSALS:
        return
    query, value = arguments["query"], arguments["value"]
    assert out.shape == (*query.shape[:-1], value.shape[-1])
    assert out.dtype == query.dtype


# --- scattered linear attention --------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "lengths": draw(st.lists(st.integers(0, 9) | st.sampled_from([0, 40]), max_size=8)),
        "heads": draw(st.integers(1, 3)),
        "dims": (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        "eps": draw(st.sampled_from([1e-6, 1e-3, 1, 1e-12])),
        "dtype": draw(DTYPES),
        "offsets": draw(st.sampled_from([torch.int32, torch.int64])),
        "seed": draw(st.integers(0, 9)),
    }


def _scattered(case: dict[str, Any]) -> dict[str, Any]:
    tokens, heads, (d, dv) = sum(case["lengths"]), case["heads"], case["dims"]
    make = lambda dim, n: _random((tokens, heads, dim), case["dtype"], case["seed"] + n)  # noqa: E731
    offsets = torch.tensor([0, *itertools.accumulate(case["lengths"])], dtype=case["offsets"])
    return {"query": make(d, 0).relu() + 0.1, "key": make(d, 1).relu() + 0.1, "value": make(dv, 2), "offsets": offsets,
            "eps": case["eps"]}  # fmt: skip


@given(case=windows())
def test_scattered_attention(case):
    arguments = _scattered(case)
    expected = scattered_linear_attention(**_exact(arguments), backend="reference")
    _agree(scattered_linear_attention(**arguments), expected, case["dtype"])


@given(
    case=windows(),
    spoiled=spoilers(("query", "key", "value", "offsets"), ("eps", "backend")),
    offsets=st.none() | st.lists(st.integers(-3, 12) | st.sampled_from([2**31 - 1, -(2**31)]), max_size=5),
)
def test_scattered_attention_with_wrong_arguments(case, spoiled, offsets):
    arguments = _scattered(case)
    if offsets is not None:
        arguments["offsets"] = torch.tensor(offsets, dtype=torch.int64)
    arguments = _spoil(arguments, spoiled, ("query", "key", "value", "offsets"))
    try:
        out = scattered_linear_attention(**arguments)
    except REFUSALS:
        return
    assert out.shape == (*arguments["query"].shape[:-1], arguments["value"].shape[-1])
    ends = arguments["offsets"]
    assert ends.device.type == "meta" or (int(ends[0]) == 0 and int(ends[-1]) == len(out) and (ends.diff() >= 0).all())


# --- sparse convolution ----------------------------------------------------------------------------------------------


@st.composite
def voxels(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    places = st.tuples(st.integers(0, 1), *(st.integers(0, n - 1) for n in shape))
    return {
        "coords": draw(st.lists(places, max_size=12, unique=True)),
        "shape": shape,
        "kernel": draw(st.integers(1, 3) | st.tuples(*[st.integers(1, 4)] * 3)),
        "stride": draw(st.integers(1, 3) | st.tuples(*[st.integers(1, 3)] * 3)),
        "padding": draw(st.integers(0, 2) | st.tuples(*[st.integers(0, 2)] * 3)),
        "channels": (draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        "dtype": draw(DTYPES),
        "seed": draw(st.integers(0, 9)),
    }


@given(case=voxels(), submanifold=st.booleans(), depthwise=st.booleans(), bias=st.booleans())
def test_sparse_convolution(case, submanifold, depthwise, bias):
    coords = torch.tensor(case["coords"], dtype=torch.int64).reshape(-1, 4)
    stride, padding = case["stride"], case["padding"]
    try:
        if submanifold:
            neighbors = Neighbors.submanifold(coords, case["shape"], case["kernel"])
            stride, padding = 1, tuple(k // 2 for k in neighbors.kernel_size)
        else:
            neighbors = Neighbors.strided(coords, case["shape"], case["kernel"], stride, padding)
    except ValueError:
        kernel, pad = (v if isinstance(v, tuple) else (v,) * 3 for v in (case["kernel"], padding))
        too_large = any(k > n + 2 * p for k, n, p in zip(kernel, case["shape"], pad, strict=True))
        assert any(k % 2 == 0 for k in kernel) if submanifold else too_large
        return
    (given_channels, made), dtype = case["channels"], case["dtype"]
    features = _random((len(coords), given_channels), dtype, case["seed"])
    out = neighbors.coords
    if depthwise:
        weight = _random((*neighbors.kernel_size, given_channels), dtype, case["seed"] + 1)
        found = sparse_depthwise_conv3d(features, weight, neighbors)
        dense = weight.double()
    else:
        weight = _random((made, *neighbors.kernel_size, given_channels), dtype, case["seed"] + 1)
        found = sparse_conv3d(features, weight, neighbors, torch.ones(made, dtype=dtype) if bias else None)
        dense = weight.double().permute(1, 2, 3, 4, 0)
    expected = dense_conv3d(features.double(), coords, 2, case["shape"], dense, out, stride, padding)
    _agree(found, expected + (bias and not depthwise), dtype)


EMPTY = {"coords": [], "shape": (1, 1, 1), "kernel": 1, "stride": 1, "padding": 0, "channels": (1, 1),
         "dtype": torch.float64, "seed": 0}  # fmt: skip


@example(case=EMPTY, spoiled={"shape": 10**20}, twice=False)
@example(case=EMPTY | {"coords": [(0, 0, 0, 0)]}, spoiled={"shape": (2**31, 2**31, 2**31)}, twice=False)
@example(case=EMPTY | {"coords": [(0, 0, 0, 0)]}, spoiled={"bias": ("longer", 0)}, twice=False)
@example(case=EMPTY | {"coords": [(0, 0, 0, 0)], "channels": (1, 3)}, spoiled={"bias": ("fewer axes", 0)}, twice=False)
@example(case=EMPTY | {"kernel": (3, 3, 3)}, spoiled={"kernel": "333"}, twice=False)
@given(
    case=voxels(),
    spoiled=spoilers(("coords", "features", "weight", "bias"), ("shape", "kernel", "stride", "padding")),
    twice=st.booleans(),
)
def test_sparse_convolution_with_wrong_arguments(case, spoiled, twice):
    coords = torch.tensor(case["coords"] * (1 + twice), dtype=torch.int64).reshape(-1, 4)
    names = ("coords", "features", "weight", "bias")
    kernel = case["kernel"] if isinstance(case["kernel"], tuple) else (case["kernel"],) * 3
    arguments = _spoil(
        {key: case[key] for key in ("shape", "kernel", "stride", "padding")} | {
            "coords": coords,
            "features": _random((len(coords), case["channels"][0]), case["dtype"], case["seed"]),
            "weight": _random((case["channels"][1], *kernel, case["channels"][0]), case["dtype"], 1),
            "bias": torch.ones(case["channels"][1], dtype=case["dtype"]),
        },
        spoiled, names,
    )  # fmt: skip
    try:
        neighbors = Neighbors.strided(*(arguments[key] for key in ("coords", "shape", "kernel", "stride", "padding")))
        out = sparse_conv3d(arguments["features"], arguments["weight"], neighbors, arguments["bias"])
    except REFUSALS:
        return
    assert not twice or not len(coords) or not len(arguments["coords"])
    assert out.shape == (len(neighbors.coords), arguments["weight"].shape[0])


# --- pose attention --------------------------------------------------------------------------------------------------


@given(
    attention=st.sampled_from(ATTENTIONS),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2)),
    blocks=st.integers(1, 2),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    soft=st.sampled_from(["bool", "hard", "soft"]),
    seed=st.integers(0, 9),
)
def test_pose_attention(attention, sizes, blocks, share, soft, seed):
    """Gathering the tokens under the mask against masked attention over all of them."""
    (B, N, T, P), generator = sizes, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = PoseBlocks(PoseBlock(8, 2, attention, dtype=torch.float64) for _ in range(blocks)).eval()
    mask: Tensor = torch.rand(B, N, T, generator=generator) < share
    if soft != "bool":
        mask = mask.double()
    if soft == "soft":
        mask = mask * torch.rand(B, N, T, generator=generator, dtype=torch.float64)
    prefix, patches = _random((B, P, 8), torch.float64, seed), _random((B, N, T, 8), torch.float64, seed + 1)
    with torch.no_grad():
        found = layers(prefix, patches, mask)
        expected = layers._dense(prefix, patches, mask, None, attention == "spatiotemporal" and blocks > 1)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@given(attention=st.text(max_size=8))
def test_unknown_pose_attention(attention):
    if attention not in ATTENTIONS:
        with pytest.raises(ValueError, match="must be one of"):
            PoseBlock(8, 2, attention)
