"""Agent attention: pooled queries (agents) attend to all tokens, and all tokens attend to the agents.

Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention" (arXiv 2312.08874). Parameter names
are the published ones.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.layers._sdpa import attend
from visionattn.layers._tokens import TokenAttention, pair

__all__ = ["AgentAttention"]

TABLE = 7  # rows and columns of the coarse part of the biases, for all map sizes


@register_notrace_module
class AgentAttention(TokenAttention):
    """Multi-head agent attention, linear in the number of tokens.

    Agents are queries pooled to a small map. The output is ``softmax(Q A^T) softmax(A K^T) V`` for agents A, plus a
    depthwise convolution of V. Both softmax terms have learned position biases. Prefix tokens are included in both, but
    are neither pooled nor convolved.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        input_size: height and width of the map that the biases are for; they are interpolated to other sizes.
        agent_num: number of agents, a square number or (rows, columns). Smaller maps repeat tokens.
        agent_shape: rows and columns of the agents to compute with, or one number for both, if they differ from
            `agent_num`; the biases, which have `agent_num` agents, are interpolated. The published detection and
            segmentation models use more agents than the classifiers whose weights they start from.
        num_prefix_tokens: number of tokens before those of the map, such as 1 for a class token.
        qkv_bias: add a bias to the query, key and value projection, as in the published Swin models.
        attn_drop: dropout rate of both attention probabilities.
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
        agent_num: int | Sequence[int] = 49,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        agent_shape: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, input_size, num_prefix_tokens)
        dd = {"device": device, "dtype": dtype}
        self.table_size = _pool_size(agent_num)
        self.pool_size = self.table_size if agent_shape is None else pair(agent_shape, "agent_shape")
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        agents, (height, width) = math.prod(self.table_size), self.input_size

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(trunc_normal_(torch.empty(*shape, **dd), std=0.02))

        # Biases of agents (a) and tokens (n; h and w for rows and columns) in the order of the logits' axes.
        self.an_bias = table(num_heads, agents, TABLE, TABLE)
        self.na_bias = table(num_heads, agents, TABLE, TABLE)
        self.ah_bias = table(1, num_heads, agents, height, 1)
        self.aw_bias = table(1, num_heads, agents, 1, width)
        self.ha_bias = table(1, num_heads, height, 1, agents)
        self.wa_bias = table(1, num_heads, 1, width, agents)
        if num_prefix_tokens:
            self.ac_bias = table(1, num_heads, agents, num_prefix_tokens)
            self.ca_bias = table(1, num_heads, num_prefix_tokens, agents)

    def biases(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return biases of agents to tokens ``[1, heads, agents, tokens]`` and of tokens to agents, transposed."""
        size = (height, width)
        ah_bias, aw_bias = (self._to_shape(table, 2) for table in (self.ah_bias, self.aw_bias))
        ha_bias, wa_bias = (self._to_shape(table, 4) for table in (self.ha_bias, self.wa_bias))
        to_tokens = F.interpolate(self._to_shape(self.an_bias, 1), size, mode="bilinear").flatten(2)[None]
        line = _stretch(ah_bias[0, ..., 0], height)[..., None] + _stretch(aw_bias[0, :, :, 0], width)[:, :, None]
        to_tokens = to_tokens + line.flatten(2)
        to_agents = F.interpolate(self._to_shape(self.na_bias, 1), size, mode="bilinear").flatten(2)[None]
        rows = _stretch(ha_bias[0, :, :, 0].transpose(1, 2), height)
        columns = _stretch(wa_bias[0, :, 0].transpose(1, 2), width)
        to_agents = to_agents + (rows[..., None] + columns[:, :, None]).flatten(2)
        to_agents = to_agents.transpose(2, 3)
        if self.num_prefix_tokens:
            to_tokens = torch.cat([self._to_shape(self.ac_bias, 2), to_tokens], 3)
            to_agents = torch.cat([self._to_shape(self.ca_bias, 3), to_agents], 2)
        return to_tokens, to_agents

    def _to_shape(self, table: Tensor, axis: int) -> Tensor:
        """Interpolate (bilinear) the agents of a table, which are along `axis`, to those of `agent_shape`."""
        if self.pool_size == self.table_size:
            return table
        moved = table.movedim(axis, -1)
        agents = F.interpolate(moved.reshape(1, -1, *self.table_size), self.pool_size, mode="bilinear")
        return agents.reshape(*moved.shape[:-1], -1).movedim(-1, axis)

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        prefix = self.num_prefix_tokens
        q, k, v = self.qkv(x).chunk(3, -1)
        q_map = q[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        agents = self.heads(F.adaptive_avg_pool2d(q_map, self.pool_size).flatten(2).transpose(1, 2))
        to_tokens, to_agents = (bias.to(q.dtype) for bias in self.biases(height, width))
        drop = self.attn_drop if self.training else 0.0
        gathered = attend(agents, self.heads(k), self.heads(v), to_tokens, drop, scale=self.scale)
        out = attend(self.heads(q), agents, gathered, to_agents, drop, scale=self.scale)
        out = out.transpose(1, 2).flatten(2)
        local = self.dwc(v[:, prefix:].transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)
        if prefix:
            local = F.pad(local, (0, 0, prefix, 0))
        return self.proj_drop(self.proj(out + local))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, agents={self.pool_size}"


def _pool_size(agent_num: int | Sequence[int]) -> tuple[int, int]:
    if not isinstance(agent_num, int):
        return pair(agent_num, "agent_num")
    side = math.isqrt(max(agent_num, 0))
    if side < 1 or side * side != agent_num:
        raise ValueError(f"`agent_num` must be a square number or (rows, columns), got {agent_num}")
    return side, side


def _stretch(table: Tensor, length: int) -> Tensor:
    """Interpolate (linear) ``[heads, agents, L]`` to another length."""
    return F.interpolate(table, length, mode="linear")
