"""Random problems with every option mixed, and their comparison with the dense definition; for all backends."""

import functools
import random

import torch

from visionattn.kernels import na1d, na2d, na3d

FUNCTIONS = {1: na1d, 2: na2d, 3: na3d}
LENGTHS = {1: (1, 7, 33, 63, 100), 2: (5, 7, 12, 14, 23), 3: (3, 4, 6, 9)}
SMALL_LENGTHS = {1: (1, 7, 33, 63), 2: (5, 7, 12, 14), 3: (3, 4, 6)}  # for the interpreter, which is slow
# Largest error seen over the sweep is a quarter of these. bf16 and fp16 are compared with the definition evaluated
# in float32 on the same rounded inputs, so that the tolerance is that of the arithmetic, not of the inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def random_case(seed: int, rank: int | None = None, lengths: dict[int, tuple[int, ...]] = LENGTHS) -> dict:
    """A legal problem with every option mixed: odd sizes, windows as long as the axis, uneven dilation, extras."""
    draw = random.Random(seed)
    rank = rank or draw.choice([1, 2, 2, 2, 3])
    shape, kernel, stride, dilation = [], [], [], []
    for _ in range(rank):
        length = draw.choice(lengths[rank])
        k = draw.randint(1, min(length, 13))
        shape.append(length)
        kernel.append(k)
        stride.append(draw.choice([1, 1, draw.randint(1, k)]))
        dilation.append(draw.choice([1, draw.randint(1, length // k)]))
    causal = [draw.random() < 0.25 for _ in range(rank)]
    rpb = all(k % 2 for k in kernel) and not any(causal)
    heads_kv = draw.choice([1, 2])
    return dict(
        rank=rank, shape=shape, kernel=kernel, stride=stride, dilation=dilation, causal=causal,
        batch=draw.choice([1, 2]), heads_kv=heads_kv, heads=heads_kv * draw.choice([1, 1, 2]),
        dim=draw.choice([1, 8, 24]), value_dim=draw.choice([None, None, 5]), rpb=rpb,
        extra=draw.choice([0, 0, 3]), scale=draw.choice([None, 0.3]), seed=seed,
    )  # fmt: skip


def make_inputs(case: dict, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(case["seed"])

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lead, kv, dim = (case["batch"], *case["shape"]), case["heads_kv"], case["dim"]
    value_dim = case["value_dim"] or dim
    inputs = dict(query=draw(*lead, case["heads"], dim), key=draw(*lead, kv, dim), value=draw(*lead, kv, value_dim))
    if case["rpb"]:
        inputs["rpb"] = draw(case["heads"], *(2 * k - 1 for k in case["kernel"]))
    if case["extra"]:
        inputs["additional_keys"] = draw(case["batch"], case["extra"], kv, dim)
        inputs["additional_values"] = draw(case["batch"], case["extra"], kv, value_dim)
    return inputs


def run(case: dict, inputs: dict, backend: str):
    """Output (with and without gradients and lse), lse and every gradient, for a loss that also depends on the lse."""
    attention = functools.partial(
        FUNCTIONS[case["rank"]], kernel_size=case["kernel"], stride=case["stride"], dilation=case["dilation"],
        is_causal=case["causal"], scale=case["scale"], backend=backend,
    )  # fmt: skip
    outputs = {"out alone": attention(**inputs)} if backend == "torch" else {}  # a way of its own there
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, lse = attention(**inputs, return_lse=True)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    loss = (out * weight).sum() + (lse * torch.randn(lse.shape, generator=generator).to(lse)).sum()
    loss.backward()
    outputs |= {"out": out.detach(), "lse": lse.detach()}
    return outputs | {f"grad of {n}": x.grad for n, x in inputs.items()}


def assert_agree(case: dict, dtype: torch.dtype, backend: str = "torch", device: str = "cpu") -> dict[str, float]:
    """Compare with the definition; return the largest error of each result, relative to its limit."""
    inputs = {name: x.to(device) for name, x in make_inputs(case, dtype).items()}
    exact = torch.promote_types(dtype, torch.float32)
    expected = run(case, {name: x.to(exact) for name, x in inputs.items()}, "reference")
    actual, errors = run(case, inputs, backend), {}
    for name, got in actual.items():
        want = expected[name.removesuffix(" alone")]
        assert got.dtype == (exact if name == "lse" else dtype), (name, got.dtype)
        assert got.shape == want.shape
        limit = TOLERANCE[dtype] * max(1.0, want.abs().max().item())
        error = (got.to(exact) - want).abs().max().item()
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e} for {case}"
        errors[name] = error / limit
    return errors
