"""Random problems of scattered linear attention, and the comparison of a backend with the definition."""

import random

import torch

from visionattn.kernels import scattered_linear_attention

# Largest error seen over the sweep is a quarter of these, relative to the largest value. Low precision is compared
# with the definition evaluated in float32 on the same rounded inputs.
TOLERANCE = {torch.float64: 2e-14, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def random_case(seed: int, longest: int = 40) -> dict:
    """A legal problem: empty windows, windows of one token, and at times one that is much longer than the others."""
    draw = random.Random(seed)
    lengths = [draw.choice([0, 1, draw.randint(0, longest)]) for _ in range(draw.choice([0, 1, 2, 5, 9]))]
    if draw.random() < 0.3:
        lengths.insert(draw.randint(0, len(lengths)), draw.randint(longest, 15 * longest))
    dim, zero_queries = draw.choice([1, 4, 8, 24]), draw.random() < 0.5
    return dict(
        seed=seed, lengths=lengths, heads=draw.choice([1, 2, 3]), dim=dim, value_dim=draw.choice([dim, dim, 5]),
        index=draw.choice([torch.int32, torch.int64]), zero_queries=zero_queries,
        eps=0.1 if zero_queries else draw.choice([1e-6, 0.1]),  # the gradients of a zero query grow with 1 / eps
    )  # fmt: skip


def offsets_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=dtype).cumsum(0, dtype=dtype)


def make_inputs(case: dict, dtype: torch.dtype, device: str = "cpu") -> tuple[dict, dict]:
    """Tensors, and the other arguments. Queries and keys are positive, but for queries that are all zero."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = sum(case["lengths"]), case["heads"], case["dim"]

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = dict(
        query=draw(*shape).relu() + 0.3, key=draw(*shape).relu() + 0.3, value=draw(*shape[:2], case["value_dim"])
    )
    if case["zero_queries"]:
        tensors["query"] *= draw(*shape[:2], 1) > -0.5
    offsets = offsets_of(case["lengths"], case["index"]).to(device)
    return {n: x.to(device, dtype) for n, x in tensors.items()}, dict(offsets=offsets, eps=case["eps"])


def run(tensors: dict, others: dict, backend: str) -> dict:
    """Output and every gradient."""
    tensors = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out = scattered_linear_attention(**tensors, **others, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    (out * weight).sum().backward()
    return {"out": out.detach(), **{f"grad of {n}": x.grad for n, x in tensors.items()}}


def assert_agree(case: dict, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Output and gradients agree with the definition."""
    tensors, others = make_inputs(case, dtype, device)
    actual = run(tensors, others, backend)
    exact = torch.promote_types(dtype, torch.float32)
    expected = run({name: x.to(exact) for name, x in tensors.items()}, others, "reference")
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == dtype, (name, got.dtype)
        assert got.shape == want.shape
        limit = TOLERANCE[dtype] * max(1.0, want.abs().max().item()) if want.numel() else 0
        error = (got.to(exact) - want).abs().max().item() if want.numel() else 0
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e} for {case}"
