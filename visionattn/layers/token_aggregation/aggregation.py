"""Attention between tokens with similar content."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import bilevel_routing_attention
from visionattn.kernels.exporting import any_symbolic
from visionattn.kernels.transforms import full_precision
from visionattn.layers._sdpa import attend
from visionattn.layers.token_aggregation.parts import (
    ConvFFN,
    Normed,
    Projections,
    check_heads,
    common_width,
    project_heads,
)

__all__ = ["TokenAggregationBlock", "grouped_attention", "reversed_extension"]

DECAY = 0.999
"""Share of the old centers in the moving average."""


def reversed_extension(count: int, total: int, device: torch.device | None = None) -> Tensor:
    """Return indices that extend a sequence at its end by its own last elements in reverse order, int64 ``[total]``.

    If the sequence is too short for the extension, it follows once more: 0 1 2 2 1 0 0 1 2.

    Args:
        count: length of the sequence.
        total: length with the extension, at most ``3 * count``.
        device: device of the result.

    Raises:
        ValueError: ``total`` is too large.
    """
    if not any_symbolic([count, total]) and total > 3 * count:
        raise ValueError(f"`total` must be at most {3 * count} for {count} tokens, got {total}")
    index = torch.arange(total, device=device)
    index = torch.where(index < count, index, 2 * count - 1 - index)
    return torch.where(index < 0, -1 - index, index)


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, group_size: int, scale: float, backend: str | None = None
) -> Tensor:
    """Attention of each group of a sequence to its own keys and to those of the next group.

    Args:
        query, key, value: ``[batch, (groups + 1) * group_size, heads, d]`` with the same ``d``; the queries of the last
            group are not used.
        group_size: tokens of a group.
        scale: factor on the attention scores.
        backend: backend of `visionattn.kernels.bilevel_routing_attention`, which then computes the attention. None uses
            the default backend of that operator on a GPU, and elsewhere PyTorch's fused attention.

    Returns:
        ``[batch, groups * group_size, heads, d]``.
    """
    batch, total, heads, dim = query.shape
    groups = total // group_size - 1
    if backend is not None or (query.is_cuda and not torch.compiler.is_exporting()):
        own = torch.arange(groups + 1, device=query.device)
        regions = torch.stack([own, (own + 1) % (groups + 1)], -1).expand(batch, -1, -1)
        maps = (x.unsqueeze(2) for x in (query, key, value))
        out = bilevel_routing_attention(
            *maps, (groups + 1, 1), 2, scale=scale, key_regions=regions.contiguous(), backend=backend
        )
        return out[:, : groups * group_size, 0]
    q, k, v = (x.unflatten(1, (groups + 1, group_size)) for x in (query, key, value))
    k, v = (torch.cat([x[:, :-1], x[:, 1:]], 2).flatten(0, 1).transpose(1, 2) for x in (k, v))
    q = q[:, :-1].reshape(batch * groups, group_size, heads, dim).transpose(1, 2)
    return attend(q, k, v, scale=scale).transpose(1, 2).reshape(batch, groups * group_size, heads, dim)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[b, index[b, i]]`` for ``x`` ``[B, N, C]`` and indices ``[B, L]``."""
    batch, count, channels = x.shape
    flat = index + count * torch.arange(batch, device=x.device).unsqueeze(1)
    return x.reshape(batch * count, channels).index_select(0, flat.flatten()).view(batch, index.shape[1], channels)


class TokenAggregationBlock(nn.Module):
    """Tokens with similar content attend to each other (section 3.2).

    Each token is assigned to the most similar of `centers` vectors. In the order of their centers, the tokens are
    divided into groups of `group_size`; a token attends to its group and the next one, and to the centers. A `ConvFFN`
    follows. Tokens of the same center keep their row-major order, so that the result is deterministic.

    The centers are a moving average of those that k-means finds in the training batches. Before the first training
    step, they are the means of equal parts of the input.

    Args:
        dim: channels, a multiple of `heads`.
        qk_dim: channels of queries and keys, a multiple of `heads`.
        mlp_dim: hidden channels of the feed-forward layer.
        heads: attention heads.
        centers: number of centers.
        group_size: tokens of a group.
        iterations: rounds of k-means in a training step.
        sync: in distributed training, compute the centers from the tokens of all processes.
        backend: see `grouped_attention`.

    Attributes:
        exported_with_centers: stands for the buffer ``initted`` in traces of `torch.export`, which cannot depend on its
            value.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        qk_dim: int,
        mlp_dim: int,
        heads: int = 4,
        centers: int = 16,
        group_size: int = 256,
        iterations: int = 5,
        sync: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, qk_dim, heads)
        for name, value in (("centers", centers), ("group_size", group_size), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.heads, self.group_size, self.iterations, self.sync = heads, group_size, iterations, sync
        self.scale, self.backend = (qk_dim // heads) ** -0.5, backend
        self.exported_with_centers = True
        self.norm = nn.LayerNorm(dim)
        self.mlp = Normed(dim, ConvFFN(dim, mlp_dim))
        self.irca_attn = Projections("to_k to_v", dim, qk_dim)
        self.iasa_attn = Projections("to_q to_k to_v proj", dim, qk_dim)
        self.conv1x1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.register_buffer("means", F.normalize(torch.randn(centers, dim), dim=-1))
        self.register_buffer("initted", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``, ``[B, C, H, W]``."""
        x = x.permute(0, 2, 3, 1)
        tokens = x.flatten(1, 2)
        x = (tokens + self._attention(self.norm(tokens))).view(x.shape)
        return (x + self.mlp.fn(self.mlp.norm(x))).permute(0, 3, 1, 2)

    def _attention(self, tokens: Tensor) -> Tensor:
        """Return the update of normalized tokens ``[B, N, C]``."""
        batch, count, dim = tokens.shape
        with full_precision(tokens.device.type):
            exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            centers = self._centers(exact)
            with torch.no_grad():
                # of unit vectors, as published: rounding decides between two centers that are almost equally similar
                label = (F.normalize(exact, dim=-1) @ F.normalize(centers, dim=-1).T).argmax(-1)
                # distinct keys: every sorting algorithm gives the same order
                key = label * count + torch.arange(count, device=label.device)
                order = key.argsort(1)
        # in programs for any size, images have at least one group
        size = self.group_size if any_symbolic([count]) else min(count, self.group_size)
        groups = (count + size - 1) // size
        extension = reversed_extension(count, (groups + 1) * size, tokens.device)
        ordered = _rows(tokens, order[:, extension])
        value_dim = dim // self.heads
        width = common_width([self.iasa_attn.to_q.weight.shape[0] // self.heads, value_dim], tokens.device)
        q, k, v = self.iasa_attn.project(ordered, self.heads, width)
        near = grouped_attention(q, k, v, size, self.scale, self.backend)
        k, v = (
            project_heads(centers, layer.weight, self.heads, width).transpose(0, 1).expand(batch, -1, -1, -1)
            for layer in (self.irca_attn.to_k, self.irca_attn.to_v)
        )
        far = attend(q[:, : groups * size].transpose(1, 2), k.to(q.dtype), v.to(q.dtype), scale=self.scale)
        out = (near + far.transpose(1, 2))[..., :value_dim].flatten(2)
        out = _rows(out, order.argsort(1))  # without the queries of the extension
        # both layers are linear without bias
        return F.linear(out, self.conv1x1.weight.flatten(1) @ self.iasa_attn.proj.weight)

    def _centers(self, tokens: Tensor) -> Tensor:
        """Return the centers ``[M, C]``, and update their moving average in training."""
        known = self.exported_with_centers if torch.compiler.is_exporting() else bool(self.initted)
        centers = self.means if known else self._chunk_means(tokens.detach())
        if not self.training:
            return centers
        centers = self._cluster(tokens, centers)
        with torch.no_grad():
            self.means.copy_(DECAY * self.means + (1 - DECAY) * centers if known else centers)
            self.initted.fill_(True)
        return centers

    def _chunk_means(self, tokens: Tensor) -> Tensor:
        """Return the means of `centers` equal parts of the extended sequence of tokens, over the batch."""
        count, parts = tokens.shape[1], self.means.shape[0]
        total = (count // parts + 1) * parts
        extended = tokens[:, reversed_extension(count, total, tokens.device)]
        return self._reduced(extended.unflatten(1, (parts, total // parts)).mean((0, 2)), mean=True)

    def _cluster(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """Return the centers after k-means by cosine similarity; the gradient passes through the last round."""
        tokens = F.normalize(tokens, dim=-1).flatten(0, 1)
        centers = F.normalize(centers, dim=-1)
        fixed = tokens.detach()
        for number in range(self.iterations):
            label = (fixed @ centers.T).argmax(-1)
            used = tokens if number == self.iterations - 1 else fixed
            sums = torch.zeros_like(centers).index_add(0, label, used)
            count = torch.zeros_like(centers[:, 0]).index_add(0, label, torch.ones_like(fixed[:, 0]))
            sums, count = self._reduced(sums), self._reduced(count)
            centers = torch.where(count[:, None] > 0, F.normalize(sums, dim=-1), centers)
        return centers

    def _reduced(self, value: Tensor, mean: bool = False) -> Tensor:
        """Return the sum, or the mean, of a tensor over the processes of distributed training."""
        if not (self.sync and self.training and dist.is_available() and dist.is_initialized()):
            return value
        total = torch.distributed.nn.functional.all_reduce(value)
        return total / dist.get_world_size() if mean else total
