"""What else one can use for scattered linear attention, and the problems its benchmarks time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from visionattn.kernels import scattered_linear_attention

__all__ = ["EPS", "Case", "check", "pad_chunks", "pad_to_longest", "window_loop"]

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One attention layer on the voxels of a frame."""

    tokens: int
    windows: int
    longest: int
    heads: int = 4
    dim: int = 32
    crowded: int = 0  # so many of the tokens are in one of the windows

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.windows}"

    def lengths(self) -> torch.Tensor:
        """Voxels of each window: of a log-normal distribution, as a LiDAR has it, crowded near the sensor."""
        draw = torch.Generator().manual_seed(0)
        count, tokens = self.windows - (self.crowded > 0), self.tokens - self.crowded
        weights = torch.empty(count).log_normal_(0, 0.9, generator=draw)
        lengths = weights / weights.sum() * tokens
        for _ in range(50):
            lengths = (lengths * (tokens / lengths.sum())).clamp(1, self.longest)
        lengths = lengths.floor().long()
        room = (lengths < self.longest).nonzero().flatten()
        missing = tokens - int(lengths.sum())
        lengths[room[torch.arange(missing) % len(room)]] += 1  # what rounding took
        if self.crowded:
            lengths = torch.cat((lengths[: count // 2], torch.tensor([self.crowded]), lengths[count // 2 :]))
        assert int(lengths.sum()) == self.tokens
        assert int(lengths.max()) <= self.longest
        return lengths

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
        """Queries, keys, values and offsets."""
        shape = (self.tokens, self.heads, self.dim)
        q, k, v = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), self.lengths().cumsum(0)))
        return [q.relu(), k.relu(), v, offsets.to(device)]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Of ``[..., tokens, d]``; padding is zero."""
    kv, k_sum = k.transpose(-1, -2) @ v, k.sum(-2)[..., None]
    return (q @ kv) / (q @ k_sum + EPS)


def window_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """One window after the other, all heads in each product."""
    lengths = offsets.diff().tolist()
    windows = zip(*(x.transpose(0, 1).split(lengths, 1) for x in (q, k, v)), strict=True)
    return torch.cat([_attend(*window) for window in windows], 1).transpose(0, 1)


def _places(offsets: torch.Tensor, length: int, per_window: torch.Tensor) -> torch.Tensor:
    """Where tokens go when each window takes `per_window` rows of `length` places."""
    lengths = offsets.diff()
    first = (per_window.cumsum(0) - per_window) * length
    within = torch.arange(int(offsets[-1]), device=offsets.device) - offsets[:-1].repeat_interleave(lengths)
    return first.repeat_interleave(lengths) + within


def _pad(x: torch.Tensor, place: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """``[rows, heads, length, d]``, zero where no token goes."""
    padded = x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, place, x)
    return padded.view(rows, length, *x.shape[1:]).transpose(1, 2)


def pad_to_longest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Every window as long as the longest, then one batch."""
    lengths = offsets.diff()
    length = int(lengths.max())
    place = _places(offsets, length, torch.ones_like(lengths))
    padded = [_pad(x, place, len(lengths), length) for x in (q, k, v)]
    return _attend(*padded).transpose(1, 2).flatten(0, 1)[place]


def pad_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, length: int = 32
) -> torch.Tensor:
    """Windows cut into chunks of 32 tokens; the sums of chunks are added up by window, then gathered again."""
    lengths = offsets.diff()
    chunks = (lengths + length - 1) // length
    rows = int(chunks.sum())
    window = torch.arange(len(lengths), device=q.device).repeat_interleave(chunks)
    place = _places(offsets, length, chunks)
    q_c, k_c, v_c = (_pad(x, place, rows, length) for x in (q, k, v))
    heads, dim, value_dim = k.shape[1], k.shape[2], v.shape[2]
    kv = k.new_zeros(len(lengths), heads, dim, value_dim).index_add(0, window, k_c.transpose(-1, -2) @ v_c)
    k_sum = k.new_zeros(len(lengths), heads, dim).index_add(0, window, k_c.sum(2))
    out = (q_c @ kv[window]) / (q_c @ k_sum[window][..., None] + EPS)
    return out.transpose(1, 2).flatten(0, 1)[place]


def check(inputs: list[torch.Tensor], functions: dict[str, Callable], tolerance: float = 1e-4) -> None:
    """Compare outputs and gradients of every contestant with those of the definition in float64."""
    offsets = inputs[3]

    def everything(function, dtype=None):
        # Away from zero: the gradients of a query whose denominator is that of eps alone drown all others.
        q, k, v = (x.detach().to(dtype or x.dtype) for x in inputs[:3])
        leaves = [(q + 0.1).requires_grad_(), (k + 0.1).requires_grad_(), v.clone().requires_grad_()]
        out = function(*leaves, offsets)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    def definition(q, k, v, offsets):
        return scattered_linear_attention(q, k, v, offsets, eps=EPS, backend="reference")

    expected = everything(definition, torch.float64)
    for name, function in functions.items():
        for got, want in zip(everything(function), expected, strict=True):
            error = ((got.double() - want).abs().max() / max(1.0, want.abs().max())).item()
            if not error <= tolerance:
                raise SystemExit(f"{name} is wrong: error {error:.1e}; nothing was timed")
