"""Scores and values of neighborhoods as separate operators."""

import itertools

import pytest
import torch
from neighborhood_cases import FUNCTIONS, random_case

from visionattn.kernels.neighborhood import unfused
from visionattn.kernels.neighborhood.unfused import bias_of_neighbors, neighborhood_scores, neighborhood_values

CASES = [case for seed in range(200) if not (case := random_case(seed))["extra"]][:40]


def heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-2, 1)


def inputs(case: dict, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (case["batch"], case["heads"], *case["shape"], case["dim"])
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    table = torch.randn(case["heads"], *(2 * k - 1 for k in case["kernel"]), generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (*tensors, table)]


def geometry(case: dict) -> tuple:
    return case["kernel"], case["stride"], case["dilation"], case["causal"]


def attention(case: dict, q, k, v, rpb) -> torch.Tensor:
    scores = neighborhood_scores(q * case["dim"] ** -0.5, k, *geometry(case))
    if case["rpb"]:
        scores = scores + bias_of_neighbors(rpb, case["shape"], *geometry(case)[:3])
    return neighborhood_values(scores.softmax(-1), v, *geometry(case))


@pytest.mark.parametrize("chunk", [unfused.CHUNK_NUMBERS, 3000])
def test_random_problems(chunk, monkeypatch):
    monkeypatch.setattr(unfused, "CHUNK_NUMBERS", chunk)
    for case in CASES:
        q, k, v, rpb = tensors = inputs(case)
        out = attention(case, *tensors)
        names = ("kernel_size", "stride", "dilation", "is_causal")
        expected = FUNCTIONS[case["rank"]](
            *(x.movedim(1, -2) for x in (q, k, v)), **dict(zip(names, geometry(case), strict=True)),
            rpb=rpb if case["rpb"] else None, backend="reference",
        )  # fmt: skip
        expected = heads_first(expected)
        torch.testing.assert_close(out, expected, msg=lambda text, case=case: f"{case}: {text}")
        weight = torch.randn_like(out)
        wanted = tensors if case["rpb"] else tensors[:3]
        for got, want in zip(
            torch.autograd.grad(out, wanted, weight), torch.autograd.grad(expected, wanted, weight), strict=True
        ):
            torch.testing.assert_close(got, want, msg=lambda text, case=case: f"{case}: {text}")


def test_order_of_the_neighbors():
    """Row-major, at the positions of the definition; the missing ones of a causal axis come last."""
    shape, kernel, dilation = (5, 7), (3, 2), (1, 2)
    query = torch.ones(1, 1, *shape, 1)
    key = torch.arange(35.0).view(1, 1, *shape, 1)
    scores = neighborhood_scores(query, key, kernel, (1, 1), dilation, (False, True))[0, 0]
    for row, column in itertools.product(range(5), range(7)):
        rows = [min(max(row - 1, 0), 2) + i for i in range(3)]
        columns = [c for c in (column - 2, column) if c >= 0]
        found = [[7 * r + c for c in columns] + [-torch.inf] * (2 - len(columns)) for r in rows]
        assert scores[row, column].tolist() == list(itertools.chain(*found))


def test_gradients_of_gradients():
    case = dict(CASES[0], rank=1, shape=[7], kernel=[3], stride=[1], dilation=[2], causal=[True], rpb=False, dim=2,
                heads=1, batch=1)  # fmt: skip
    q, k, v, _ = inputs(case)
    torch.autograd.gradcheck(lambda q, k, v: attention(case, q, k, v, None), (q, k, v))
    torch.autograd.gradgradcheck(lambda q, k, v: attention(case, q, k, v, None), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    case = dict(CASES[0], rank=2, shape=[12, 12], kernel=[5, 5], stride=[1, 1], dilation=[2, 1], causal=[False] * 2,
                rpb=False, dim=64)  # fmt: skip
    q, k, v, _ = inputs(case, dtype)
    scores = neighborhood_scores(q, k, *geometry(case))
    assert scores.dtype == dtype
    exact = neighborhood_scores(q.double(), k.double(), *geometry(case))
    torch.testing.assert_close(scores.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    weights = exact.softmax(-1).to(dtype)
    values = neighborhood_values(weights, v, *geometry(case))
    torch.testing.assert_close(
        values.double(), neighborhood_values(weights.double(), v.double(), *geometry(case)),
        rtol=torch.finfo(dtype).eps, atol=1e-4,
    )  # fmt: skip


def test_operators_are_registered():
    case = dict(CASES[0], rank=2, shape=[5, 6], kernel=[3, 3], stride=[1, 1], dilation=[1, 2], causal=[False, True],
                rpb=False, dim=2)  # fmt: skip
    q, k, v, _ = inputs(case, torch.float32)
    weights = torch.rand(*q.shape[:-1], 9, requires_grad=True)
    arguments = ([5, 6], *geometry(case))
    for name, tensors in {"scores": (q, k), "values": (weights, v), "spread": (weights, q)}.items():
        operator = getattr(torch.ops.visionattn, f"neighborhood_{name}").default
        torch.library.opcheck(operator, (*tensors, *arguments))


def test_one_graph():
    case = next(case for case in CASES if case["rpb"] and case["rank"] == 2)
    tensors = inputs(case, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: attention(case, *x), fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(run(*tensors).square().sum(), tensors)
               for run in (compiled, lambda *x: attention(case, *x))]  # fmt: skip
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_memory_is_bounded():
    """The largest buffer is that of a chunk, not of all neighbors of all queries with their channels."""
    q, k = torch.randn(2, 1, 2, 64, 64, 32).unbind()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        neighborhood_scores(q, k, (13, 13), (1, 1), (1, 1), (False, False))
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    gathered = k.numel() * 13 * 13 * 4
    assert most < gathered / 2
