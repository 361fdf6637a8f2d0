"""Random problems of bi-level routing attention, and the comparison of a backend with the definition."""

import random

import torch

from visionattn.kernels import bilevel_routing_attention

# Largest error seen over the sweep is a quarter of these. Low precision is compared with the definition evaluated in
# float32 on the same rounded inputs, so that the tolerance is that of the arithmetic, not of the inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def random_case(seed: int, longest: int = 17) -> dict:
    """A legal problem: maps that regions do not divide, empty regions, masks, pooled keys, given routing."""
    draw = random.Random(seed)
    regions = draw.randint(1, 5), draw.randint(1, 5)
    dim = draw.choice([1, 4, 8, 24])
    return dict(
        seed=seed, batch=draw.choice([1, 2]), map=(draw.randint(1, longest), draw.randint(1, longest)),
        heads=draw.choice([1, 2, 3]), dim=dim, value_dim=draw.choice([dim, dim, 5]), regions=regions,
        topk=draw.randint(1, regions[0] * regions[1]), mask=draw.choice([None, None, "shared", "own", "nearly all"]),
        scale=draw.choice([None, 0.3]), key_map=draw.choice([None, None, (draw.randint(1, 9), draw.randint(1, 9))]),
    )  # fmt: skip


def make_inputs(case: dict, dtype: torch.dtype, device: str = "cpu") -> tuple[dict, dict]:
    """Tensors with gradients, and the other arguments."""
    generator = torch.Generator().manual_seed(case["seed"])

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    batch, heads, dim = case["batch"], case["heads"], case["dim"]
    key_map = case["key_map"] or case["map"]
    tensors = dict(
        query=draw(batch, *case["map"], heads, dim),
        key=draw(batch, *key_map, heads, dim),
        value=draw(batch, *key_map, heads, case["value_dim"]),
    )
    others = dict(num_regions=case["regions"], topk=case["topk"], scale=case["scale"], padding_mask=None)
    if case["mask"]:
        lead = () if case["mask"] == "shared" else (batch,)
        share = 0.97 if case["mask"] == "nearly all" else 0.3
        others["padding_mask"] = (torch.rand(*lead, *key_map, generator=generator) < share).to(device)
    if case["key_map"]:
        count = case["regions"][0] * case["regions"][1]
        order = torch.rand(batch, count, count, generator=generator).argsort(-1)
        others["key_regions"] = order[..., : case["topk"]].contiguous().to(device)
    return tensors, others


def run(tensors: dict, others: dict, backend: str) -> dict:
    """Output, routing and every gradient."""
    tensors = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out, routing = bilevel_routing_attention(**tensors, **others, return_routing=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    (out * weight).sum().backward()
    return {"routing": routing, "out": out.detach(), **{f"grad of {n}": x.grad for n, x in tensors.items()}}


def assert_agree(case: dict, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Everything agrees with the definition, under the routing that the backend chose."""
    tensors, others = make_inputs(case, dtype, device)
    exact = torch.promote_types(dtype, torch.float32)
    actual = run(tensors, others, backend)
    tensors = {name: x.to(exact) for name, x in tensors.items()}
    # The routing of the definition may differ where two regions match equally well; it is compared on its own.
    expected = run(tensors, others | {"key_regions": actual["routing"]}, "reference")
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == (torch.long if name == "routing" else dtype), (name, got.dtype)
        assert got.shape == want.shape
        limit = TOLERANCE[dtype] * max(1.0, want.abs().max().item()) if want.numel() else 0
        error = (got.to(exact) - want.to(exact)).abs().max().item()
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e} for {case}"
