"""What else one can use for bi-level routing attention, and the problem both routing benchmarks time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from visionattn.kernels import bilevel_routing_attention

__all__ = ["Case", "check", "chunked_sdpa", "gather", "gather_sdpa"]


@dataclass(frozen=True)
class Case:
    """One attention layer; the scale is the published one, of all channels."""

    side: int
    topk: int
    heads: int
    regions: int = 7
    batch: int = 1
    dim: int = 32

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side}"

    @property
    def scale(self) -> float:
        return (self.heads * self.dim) ** -0.5

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
        shape = (self.batch, self.side, self.side, self.heads, self.dim)
        return [torch.randn(shape, dtype=dtype, device=device) for _ in range(3)]


def _to_regions(case: Case, x: torch.Tensor) -> torch.Tensor:
    """``[B, H, W, heads, d]`` to ``[B, regions, tokens, heads * d]``."""
    side = case.side // case.regions
    x = x.reshape(x.shape[0], case.regions, side, case.regions, side, -1).transpose(2, 3)
    return x.reshape(x.shape[0], case.regions**2, side**2, -1)


def _to_map(case: Case, x: torch.Tensor) -> torch.Tensor:
    """``[B * regions, heads, tokens, d]`` to ``[B, H, W, heads, d]``."""
    side = case.side // case.regions
    x = x.transpose(1, 2).reshape(-1, case.regions, case.regions, side, side, case.heads, case.dim)
    return x.transpose(2, 3).reshape(-1, case.side, case.side, case.heads, case.dim)


def _route(case: Case, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (q.mean(2) @ k.mean(2).transpose(1, 2)).topk(case.topk, dim=-1).indices


def _gathered(case: Case, q, k, v) -> list[torch.Tensor]:
    """Queries of each region, and copies of all keys and values that they read, as batches of heads."""
    q, k, v = (_to_regions(case, x) for x in (q, k, v))
    index = _route(case, q, k)
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
    tokens = (q, k[batch, index], v[batch, index])
    return [x.reshape(q.shape[0] * q.shape[1], -1, case.heads, case.dim).transpose(1, 2) for x in tokens]


def gather(case: Case, q, k, v) -> torch.Tensor:
    """The common implementation: copy every selected region for every query region, then two products and a softmax."""
    q, k, v = _gathered(case, q, k, v)
    probability = ((q * case.scale) @ k.transpose(-1, -2)).softmax(-1)
    return _to_map(case, probability @ v)


def gather_sdpa(case: Case, q, k, v) -> torch.Tensor:
    """The same copies under PyTorch's fused attention."""
    return _to_map(case, F.scaled_dot_product_attention(*_gathered(case, q, k, v), scale=case.scale))


def chunked_sdpa(case: Case, q, k, v, chunk: int = 8) -> torch.Tensor:
    """Fused attention of a few regions at a time, so that fewer copies exist at once. One image."""
    q, k, v = (_to_regions(case, x) for x in (q, k, v))
    index, k, v = _route(case, q, k)[0], k[0], v[0]
    results = []
    for rows, queries in zip(index.split(chunk), q[0].split(chunk), strict=True):
        tokens = (queries, k[rows], v[rows])
        tokens = [x.reshape(len(rows), -1, case.heads, case.dim).transpose(1, 2) for x in tokens]
        results.append(F.scaled_dot_product_attention(*tokens, scale=case.scale))
    return _to_map(case, torch.cat(results))


def check(case: Case, inputs: list[torch.Tensor], functions: dict[str, Callable], tolerance: float = 1e-4) -> None:
    """Compare outputs and gradients of every contestant with those of the definition."""

    def everything(function):
        leaves = [x.detach().float().requires_grad_() for x in inputs]
        leaves = leaves if function is definition else [x.to(inputs[0]).detach().requires_grad_() for x in leaves]
        out = function(*leaves)
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    def definition(q, k, v):
        return bilevel_routing_attention(q, k, v, case.regions, case.topk, scale=case.scale, backend="reference")

    expected = everything(definition)
    for name, function in functions.items():
        for got, want in zip(everything(function), expected, strict=True):
            error = ((got.float() - want).abs().max() / max(1.0, want.abs().max())).item()
            if error > tolerance:
                raise SystemExit(f"{name} is wrong on {case}: error {error:.1e}; nothing was timed")
