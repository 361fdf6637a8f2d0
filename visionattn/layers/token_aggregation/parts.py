"""Projections into heads and feed-forward layer of both attentions of CATANet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvFFN", "Normed", "Projections", "check_heads", "common_width", "project_heads"]


def check_heads(dim: int, qk_dim: int, heads: int) -> None:
    """Raise `ValueError` unless the channels can be divided into heads."""
    if heads < 1 or dim % heads or qk_dim % heads:
        raise ValueError(f"`dim` and `qk_dim` must be multiples of `heads`={heads}, got {dim} and {qk_dim}")


def common_width(dims: list[int], device: torch.device) -> int:
    """Common number of channels of queries, keys and values, for which PyTorch has fused kernels."""
    width = max(dims)
    return -(-width // 8) * 8 if device.type == "cuda" else width


def project_heads(x: Tensor, weight: Tensor, heads: int, width: int) -> Tensor:
    """Project the last axis of ``x`` into heads, each zero-padded to ``width``: ``[..., heads, width]``."""
    rows = weight.unflatten(0, (heads, -1))
    rows = F.pad(rows, (0, 0, 0, width - rows.shape[1])).flatten(0, 1)
    return F.linear(x, rows).unflatten(-1, (heads, width))


class Projections(nn.Module):
    """Linear layers without bias for queries, keys, values and the output; some may be absent."""

    def __init__(self, names: str, dim: int, qk_dim: int) -> None:
        super().__init__()
        for name in names.split():
            self.add_module(name, nn.Linear(dim, qk_dim if name in ("to_q", "to_k") else dim, bias=False))

    def project(self, x: Tensor, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``[..., heads, width]``."""
        weights = [self.to_q.weight, self.to_k.weight, self.to_v.weight]
        rows = [weight.unflatten(0, (heads, -1)) for weight in weights]
        rows = [F.pad(weight, (0, 0, 0, width - weight.shape[1])) for weight in rows]
        return F.linear(x, torch.stack(rows).flatten(0, 2)).unflatten(-1, (3, heads, width)).unbind(-3)


class Normed(nn.Module):
    """A function behind a layer norm."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn


class _Depthwise(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Sequential(nn.Conv2d(dim, dim, 5, padding=2, groups=dim))


class ConvFFN(nn.Module):
    """Feed-forward layer with a depthwise 5x5 convolution, on channels-last maps ``[batch, height, width, dim]``.

    Args:
        dim: channels.
        hidden: channels between the two linear layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), _Depthwise(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = F.gelu(self.fc1(x))
        mixed = self.dwconv.depthwise_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(x + F.gelu(mixed))
