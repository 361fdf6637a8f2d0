"""Sparsifiner: each token attends to a subset of tokens that is selected with a low-rank estimate of the attention.

Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers" (arXiv
2303.13755). Parameter names are the published ones.

This implementation makes attention sparse, not faster: the estimate and the mask cost more than the sparsity saves
compared to fused dense attention.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.layers._sdpa import attend
from visionattn.layers._tokens import TokenAttention, resize_grid

__all__ = ["Forecast", "SparsifinerAttention", "record_reconstruction"]


class Forecast(NamedTuple):
    """Output of the mask predictor for N tokens, P of them prefix tokens, and rank r.

    Attributes:
        mask: bool ``[B, heads, N, N]``, True where a token attends to another. Rows of prefix tokens are True.
        approximate: low-rank estimate of the attention, ``[B, heads, N - P, N]``.
        coefficients: coefficients of the basis after top-k selection, ``[B, heads, N - P, r]``.
        basis: ``[r, N]``.
    """

    mask: Tensor
    approximate: Tensor
    coefficients: Tensor
    basis: Tensor


class MaskPredictor(nn.Module):
    """Parameters of the low-rank estimate; the query and key projections are shared by all heads."""

    def __init__(self, tokens: int, head_dim: int, rank: int, channels: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj_n = nn.Parameter(trunc_normal_(torch.empty(tokens, rank, **dd), std=0.02))
        self.proj_back_n = nn.Parameter(trunc_normal_(torch.empty(tokens, rank, **dd), std=0.02))
        self.proj_c_q = nn.Linear(head_dim, channels, **dd)
        self.proj_c_k = nn.Linear(head_dim, channels, **dd)


@register_notrace_module
class SparsifinerAttention(TokenAttention):
    """Multi-head attention in which each token attends to an input-dependent subset of the tokens.

    The selection has no gradient; the mask predictor is trained with the loss of `record_reconstruction`.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        input_size: height and width of the map that the basis is for; it is interpolated to other sizes.
        num_prefix_tokens: number of tokens before those of the map, such as 1 for a class token. They attend to all
            tokens.
        qkv_bias: add a bias to the query, key and value projection.
        keep_rate: fraction of the tokens that a token attends to, in (0, 1].
        reduce_n: ratio of the number of tokens to the rank, which is rounded down, but at least 1.
        reduce_c: ratio of the channels of a head to those of the estimate.
        coefficients: number of basis vectors used for each row of the estimate.
        basis_threshold: entries of the basis up to this value are set to 0.
        attn_drop: dropout rate of the attention probabilities.
        proj_drop: dropout rate after the output projection.
        device, dtype: device and dtype of the parameters.

    Shapes: see `TokenAttention`.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        input_size: int | Sequence[int] = 14,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = False,
        keep_rate: float = 0.25,
        reduce_n: int = 6,
        reduce_c: int = 2,
        coefficients: int = 8,
        basis_threshold: float = 0.02,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, input_size, num_prefix_tokens)
        count = num_prefix_tokens + math.prod(self.input_size)
        if not 0 < keep_rate <= 1:
            raise ValueError(f"`keep_rate` must be in (0, 1], got {keep_rate}")
        if not 1 <= reduce_c <= self.head_dim:
            raise ValueError(f"`reduce_c` must be in 1..{self.head_dim} (`dim / num_heads`), got {reduce_c}")
        for name, value in (("reduce_n", reduce_n), ("coefficients", coefficients)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        dd = {"device": device, "dtype": dtype}
        self.keep_rate = keep_rate
        self.coefficients = coefficients
        self.basis_threshold = basis_threshold
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        rank = max(1, count // reduce_n)
        self.mask_predictor = MaskPredictor(count, self.head_dim, rank, self.head_dim // reduce_c, **dd)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.heads(part) for part in self.qkv(x).chunk(3, -1))

    def _coefficients(
        self, q: Tensor, k: Tensor, height: int, width: int, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return all coefficients ``[B, heads, N - P, r]`` and the signed basis ``[r, N]``."""
        predictor = self.mask_predictor
        down = resize_grid(predictor.proj_n, self.input_size, (height, width))
        basis = resize_grid(predictor.proj_back_n, self.input_size, (height, width)).T
        query, keys = predictor.proj_c_q(q), predictor.proj_c_k(k)
        if kept is not None:
            query, keys = query * kept[:, None, :, None], keys * kept[:, None, :, None]
        # As published, the scale uses the number of heads instead of their size.
        logits = query[:, :, self.num_prefix_tokens :] @ (keys.transpose(2, 3) @ down) * self.num_heads**-0.5
        return logits.softmax(-1), basis

    @torch.no_grad()
    def _forecast(self, q: Tensor, k: Tensor, height: int, width: int, kept: Tensor | None) -> Forecast:
        coefficients, basis = self._coefficients(q, k, height, width, kept)
        basis = basis.abs()
        basis = basis.masked_fill(basis <= self.basis_threshold, 0)
        if self.coefficients < coefficients.shape[-1]:
            values, index = coefficients.topk(self.coefficients, -1, sorted=False)
            coefficients = torch.zeros_like(coefficients).scatter(-1, index, values)
        approximate = coefficients @ basis.to(coefficients.dtype)
        count, prefix = approximate.shape[-1], self.num_prefix_tokens
        budget = math.ceil(self.keep_rate * count)
        scores = approximate
        if kept is not None:
            scores = scores.masked_fill(~kept[:, None, None], -float("inf"))
        index = scores.topk(budget, -1, sorted=kept is not None).indices
        chosen = torch.ones_like(index, dtype=torch.bool)
        if kept is not None:  # no more tokens than are left in the sample
            allowed = kept[:, prefix:].sum(1)
            chosen = (torch.arange(budget, device=index.device) < allowed[:, None])[:, None, None].expand_as(index)
        mask = torch.zeros_like(approximate, dtype=torch.bool).scatter(-1, index, chosen)
        return Forecast(F.pad(mask, (0, 0, prefix, 0), value=True), approximate, coefficients, basis)

    def _attend(
        self, x: Tensor, height: int, width: int, token_mask: Tensor | None = None, prune_rows: bool = False
    ) -> tuple[Tensor, Forecast]:
        q, k, v = self._project(x)
        kept = None
        if token_mask is not None:
            shape = (x.shape[0], height * width)
            if token_mask.dtype != torch.bool or token_mask.shape != shape:
                raise ValueError(f"`token_mask` must be bool {shape}, got {token_mask.dtype} {tuple(token_mask.shape)}")
            kept = F.pad(token_mask, (self.num_prefix_tokens, 0), value=True)
            q, k, v = (t * kept[:, None, :, None] for t in (q, k, v))
        forecast = self._forecast(q, k, height, width, kept)
        if kept is not None and prune_rows:
            forecast = forecast._replace(mask=forecast.mask & kept[:, None, :, None])
        mask = forecast.mask
        drop = self.attn_drop if self.training else 0.0
        if kept is None:
            out = attend(q, k, v, mask, drop, scale=self.scale)
        else:  # rows without selected tokens are 0 instead of NaN
            some = mask.any(-1, keepdim=True)
            out = attend(q, k, v, mask | ~some, drop, scale=self.scale) * some
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2))), forecast

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        return self._attend(x, height, width)[0]

    def forward_forecast(
        self,
        x: Tensor,
        size: tuple[int, int] | None = None,
        token_mask: Tensor | None = None,
        prune_rows: bool = False,
    ) -> tuple[Tensor, Forecast]:
        """Compute attention with pruned tokens, and return the mask prediction.

        Args:
            x: see `TokenAttention`.
            size: height and width of the map.
            token_mask: bool ``[B, H * W]``, False for pruned tokens of the map. Their queries, keys and values are 0,
                and other tokens of the map do not attend to them.
            prune_rows: pruned tokens do not attend to other tokens, either; their output is the projection of 0.

        Returns:
            The output ``[B, N, C]`` and the mask prediction.
        """
        tokens, height, width = self.tokens(x, size)
        return self._attend(tokens, height, width, token_mask, prune_rows)

    def reconstruct(self, x: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the low-rank estimate with all coefficients and the signed basis, and the dense attention.

        Returns:
            Both ``[B, heads, N - P, N]``, without rows of prefix tokens.
        """
        tokens, height, width = self.tokens(x, size)
        q, k, _ = self._project(tokens)
        coefficients, basis = self._coefficients(q, k, height, width)
        dense = q[:, :, self.num_prefix_tokens :] * self.scale @ k.transpose(2, 3)
        return coefficients @ basis, dense.softmax(-1)

    def reconstruction_loss(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the mean squared error of `reconstruct`, which trains the mask predictor."""
        approximate, dense = self.reconstruct(x, size)
        return F.mse_loss(approximate, dense)


@contextlib.contextmanager
def record_reconstruction(model: nn.Module) -> Iterator[list[Tensor]]:
    """Context manager that collects the `reconstruction_loss` of all Sparsifiner layers in each forward pass.

    The mask predictors get a gradient from these losses only. The published recipe trains with them for 5 epochs with
    all tokens (``keep_rate=1``), then for 45 epochs with masks, with cross entropy (weight 1), distillation of logits
    and tokens from the dense model (0.5 each) and these losses (0.01)::

        with record_reconstruction(model) as losses:
            logits = model(images)
        loss = F.cross_entropy(logits, labels) + 0.01 * sum(losses)
    """
    losses: list[Tensor] = []

    def record(module: SparsifinerAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        losses.append(module.reconstruction_loss(args[0], kwargs.get("size")))

    layers = [module for module in model.modules() if isinstance(module, SparsifinerAttention)]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield losses
    finally:
        for hook in hooks:
            hook.remove()
