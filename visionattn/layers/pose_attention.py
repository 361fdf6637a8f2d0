"""Pose-aware attention blocks (PAAB) and the joint head of PAAT.

Reilly et al., "Seeing the Pose in the Pixels: Learning Pose-Aware Representations in Vision Transformers" (arXiv
2306.09331). Parameter names are the official ones.

Patches are ``[B, N, T, C]``, with N patches of a frame in row-major order and T frames (1 for images), the token order
of divided space-time attention. Prefix tokens, such as the class token, are ``[B, P, C]``; all tokens may attend to
them. The published code adds -1e9 to the logits of all disallowed pairs. This implementation gathers the tokens of the
mask first, so that norms, projections, attention and MLP are computed for them only.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, register_notrace_module
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from visionattn.kernels.transforms import full_precision
from visionattn.layers._sdpa import attend

__all__ = ["ATTENTIONS", "JointHead", "PoseBlock", "PoseBlocks", "PoseTokens", "localized_attention", "select_tokens"]

ATTENTIONS = ("spatial", "joint", "spatiotemporal")


class PoseTokens(NamedTuple):
    """Tokens selected by a mask, and their positions in a padded batch.

    Attributes:
        group: int64 ``[S]``, row of the mask of each selected token.
        token: int64 ``[S]``, column of the mask of each selected token.
        slot: int64 ``[S]``, index among the selected tokens of its row.
        weight: ``[S]``, value of the mask, in (0, 1].
        groups: number of rows of the mask.
        width: maximum number of selected tokens of a row.
    """

    group: Tensor
    token: Tensor
    slot: Tensor
    weight: Tensor
    groups: int
    width: int


def select_tokens(mask: Tensor) -> PoseTokens:
    """Select the tokens for which a mask ``[G, N]`` with values in [0, 1] is not 0."""
    chosen = mask > 0
    group, token = chosen.nonzero(as_tuple=True)
    order = chosen.cumsum(1)
    width = int(order[:, -1].max()) if order.numel() else 0
    return PoseTokens(group, token, order[group, token] - 1, mask[group, token], mask.shape[0], width)


def localized_attention(attn: Attention, prefix: Tensor, tokens: Tensor, chosen: PoseTokens) -> tuple[Tensor, Tensor]:
    """Self-attention within each group of selected tokens and the prefix tokens of its clip.

    Mask values between 0 and 1 weight the keys: their logarithm is added to the logits.

    Args:
        attn: attention module whose projections are used.
        prefix: ``[B, P, C]``, shared by the groups of a clip; B divides the number of groups.
        tokens: ``[S, C]``, in the order of `select_tokens`.
        chosen: result of `select_tokens`.

    Returns:
        The output of the prefix tokens in each group, ``[G, P, C]``, and of the selected tokens, ``[S, C]``.
    """
    (B, P, C), G, M = prefix.shape, chosen.groups, chosen.width
    rows = attn.qkv(prefix).repeat_interleave(G // B, 0)
    packed = attn.qkv(tokens)
    padded = torch.cat([rows, rows.new_zeros(G, M, 3 * C)], 1)
    place = chosen.group, chosen.slot + P
    padded = padded.index_put(place, packed.to(padded.dtype))
    query, key, value = padded.view(G, P + M, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    soft = chosen.weight.is_floating_point()
    full = chosen.group.shape[0] == G * M
    bias = None
    if soft or not full:
        bias = query.new_full((G, P + M), torch.finfo(query.dtype).min)
        bias[:, :P] = 0.0
        values = chosen.weight.log() if soft else torch.zeros_like(chosen.group)
        bias = bias.index_put(place, values.to(bias.dtype))[:, None, None]
    out = attend(query, key, value, attn_mask=bias, scale=attn.scale)
    out = out.transpose(1, 2).reshape(G, P + M, C)
    return attn.proj(out[:, :P]), attn.proj(out[place])


def dense_attention(attn: Attention, x: Tensor, mask: Tensor, prefix: int, published: bool) -> Tensor:
    """Masked self-attention over all tokens ``[G, P + N, C]``, with `mask` ``[G, N]``, without a gather.

    Args:
        published: add -1e9 to the logits of all disallowed pairs in float32, as in the published code. In rows with
            only disallowed pairs, rounding makes all logits equal, so tokens outside of the mask get the mean of all
            values. If False, they attend to the selected tokens.
    """
    G, L, C = x.shape
    query, key, value = attn.qkv(x).view(G, L, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    inside = mask > 0
    wide = torch.promote_types(query.dtype, torch.float32)
    weight = mask.to(wide).clamp(min=torch.finfo(wide).tiny).log()
    if not published:
        bias = torch.where(inside, weight.to(query.dtype), torch.finfo(query.dtype).min)
        bias = F.pad(bias, (prefix, 0))[:, None, None]
        out = attend(query, key, value, attn_mask=bias, scale=attn.scale)
    else:
        allowed = F.pad(inside, (prefix, 0), value=True)
        weight = F.pad(torch.where(inside, weight, 0.0), (prefix, 0))
        pairs = weight.float()[:, None] - 1e9 * ~(allowed[:, :, None] & allowed[:, None])
        with full_precision(x.device.type):
            logits = (query.float() * attn.scale) @ key.float().mT + pairs[:, None]
            out = logits.softmax(-1).to(value.dtype) @ value
    return attn.proj(out.transpose(1, 2).reshape(G, L, C))


class PoseBlock(nn.Module):
    """Pose-aware attention block (PAAB): masked attention and an MLP, both residual.

    Args:
        dim: channels.
        num_heads: attention heads.
        attention: ``"spatial"``: within each frame; ``"joint"``: over all frames; ``"spatiotemporal"``: temporal
            attention of each patch without the mask, then spatial attention.
        mlp_ratio: ratio of the MLP's hidden width to `dim`.
        qkv_bias: add a bias to the query, key and value projections.
        drop_path: stochastic depth rate.
        norm_layer: norm class or factory, called with the number of channels.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if `attention` is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention: str = "spatial",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_layer=nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"`attention` must be one of {ATTENTIONS}, got {attention!r}")
        dd = {"device": device, "dtype": dtype}
        self.attention = attention
        self.norm1 = norm_layer(dim, **dd)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        if attention == "spatiotemporal":
            self.temporal_norm1 = norm_layer(dim, **dd)
            self.temporal_attn = Attention(dim, num_heads, qkv_bias=qkv_bias, **dd)
            self.temporal_fc = nn.Linear(dim, dim, **dd)

    def over_time(self, series: Tensor) -> Tensor:
        """Apply the temporal attention of ``"spatiotemporal"`` to ``[..., T, C]``."""
        rows = series.flatten(0, -3)
        out = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(rows))))
        return series + out.view(series.shape)

    def forward(self, prefix: Tensor, patches: Tensor, mask: Tensor, published: bool = False) -> tuple[Tensor, Tensor]:
        """Apply the block to all tokens without a gather, for exported graphs and for the published results.

        Args:
            prefix: ``[B, P, C]``.
            patches: ``[B, N, T, C]``.
            mask: ``[B, N, T]``.
            published: see `dense_attention`.

        Returns:
            Prefix and patches; the values of patches outside of the mask are valid with `published` only.
        """
        B, N, T, C = patches.shape
        P = prefix.shape[1]
        if self.attention == "spatiotemporal":
            patches = self.over_time(patches)
        grouped = self.to_groups(patches)
        copies = grouped.shape[0] // B
        x = torch.cat([prefix.repeat_interleave(copies, 0), grouped], 1)
        seen = self.to_groups(mask[..., None])[..., 0]
        out = self.drop_path(dense_attention(self.attn, self.norm1(x), seen, P, published))
        prefix = prefix + out[:, :P].view(B, copies, P, C).mean(1)
        rest = out[:, P:]
        rest = rest.view(B, N, T, C) if self.attention == "joint" else rest.view(B, T, N, C).transpose(1, 2)
        x = torch.cat([prefix, (patches + rest).reshape(B, N * T, C)], 1)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x[:, :P], x[:, P:].reshape(B, N, T, C)

    def to_groups(self, patches: Tensor) -> Tensor:
        """Reshape ``[B, N, T, C]`` to attention groups: ``[B * T, N, C]``, or ``[B, N * T, C]`` for ``"joint"``."""
        return patches.flatten(1, 2) if self.attention == "joint" else patches.transpose(1, 2).flatten(0, 1)

    def on_chosen(self, prefix: Tensor, tokens: Tensor, chosen: PoseTokens) -> tuple[Tensor, Tensor]:
        """Apply spatial or joint attention and the MLP to gathered tokens ``[S, C]``; see `localized_attention`."""
        B, P, C = prefix.shape
        copies = chosen.groups // B
        seen, attended = localized_attention(self.attn, self.norm1(prefix), self.norm1(tokens), chosen)
        keep = self._keep(chosen.groups, tokens)
        if keep is not None:
            seen, attended = seen * keep[:, None], attended * keep[chosen.group]
        prefix = prefix + seen.view(B, copies, P, C).mean(1)
        tokens = tokens + attended
        before, after = self.mlp(self.norm2(prefix)), self.mlp(self.norm2(tokens))
        keep = self._keep(B, tokens)
        if keep is not None:
            clip = torch.div(chosen.group, copies, rounding_mode="floor")
            before, after = before * keep[:, None], after * keep[clip]
        return prefix + before, tokens + after

    def _keep(self, count: int, like: Tensor) -> Tensor | None:
        """Return factors ``[count, 1]`` of stochastic depth, or None if it is not active."""
        if not self.training or isinstance(self.drop_path, nn.Identity):
            return None
        return self.drop_path(like.new_ones(count, 1))


def needs_fixed_shapes(x: Tensor) -> bool:
    """Return True while a program is compiled, traced, or captured as a CUDA graph, where values cannot be read."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@register_notrace_module  # the control flow depends on the mask
class PoseBlocks(nn.ModuleList):
    """A sequence of pose-aware attention blocks, whose output replaces the patches of the mask.

    The patches become ``patches * (1 - mask) + output * mask``. The prefix tokens are always replaced by the output.
    """

    def forward(
        self, prefix: Tensor, patches: Tensor, mask: Tensor | None, attended: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the blocks to the patches of the mask.

        Args:
            prefix: ``[B, P, C]``; P may be 0.
            patches: ``[B, N, T, C]``.
            mask: bool or floating point ``[B, N, T]`` in [0, 1]; None returns the inputs.
            attended: separate mask for the attention, to reproduce an error of the published code.

        Returns:
            Prefix and patches.
        """
        if mask is None:
            return prefix, patches
        last = self[-1]
        # Temporal attention of a second block needs the outputs of the first one for all tokens.
        chained = last.attention == "spatiotemporal" and len(self) > 1
        if attended is not None or chained or needs_fixed_shapes(mask):
            return self._dense(prefix, patches, mask, attended, attended is not None or chained)
        if not mask.is_floating_point() or not (mask.requires_grad or ((mask > 0) & (mask < 1)).any()):
            mask = mask > 0
        return self._gathered(prefix, patches, mask)

    def _dense(
        self, prefix: Tensor, patches: Tensor, mask: Tensor, attended: Tensor | None, published: bool
    ) -> tuple[Tensor, Tensor]:
        posed = patches
        for block in self:
            prefix, posed = block(prefix, posed, mask if attended is None else attended, published)
        weight = mask[..., None].to(patches.dtype)
        return prefix, torch.where(weight > 0, torch.lerp(patches, posed.to(patches.dtype), weight), patches)

    def _gathered(self, prefix: Tensor, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        B, N, T, C = patches.shape
        first = self[0]
        chosen = select_tokens(first.to_groups(mask[..., None])[..., 0])
        if chosen.width == 0 and prefix.shape[1] == 0:
            return prefix, patches
        if first.attention == "joint":
            place = chosen.group * (N * T) + chosen.token
        else:
            clip = torch.div(chosen.group, T, rounding_mode="floor")
            place = (clip * N + chosen.token) * T + chosen.group % T
        flat = patches.reshape(-1, C)
        plain = tokens = flat[place]
        if first.attention == "spatiotemporal":  # only patches that are in the mask in at least one frame
            series = (mask > 0).any(2).reshape(-1)
            moved = first.over_time(patches.reshape(B * N, T, C)[series])
            row = series.cumsum(0)[torch.div(place, T, rounding_mode="floor")] - 1
            tokens = moved[row, place % T]
        for block in self:
            prefix, tokens = block.on_chosen(prefix, tokens, chosen)
        tokens = tokens.to(flat.dtype)
        if chosen.weight.is_floating_point():
            tokens = torch.lerp(plain, tokens, chosen.weight[:, None].to(flat.dtype))
        return prefix, flat.index_copy(0, place, tokens).view(B, N, T, C)


class JointHead(nn.Module):
    """Auxiliary head of PAAT that predicts the joints in each patch, ``[..., C]`` to logits ``[..., joints]``.

    Args:
        dim: channels of the tokens.
        joints: number of joints.
        hidden: width between the two linear layers; as published, there is no activation between them.
        device, dtype: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        joints: int,
        hidden: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.learned_joint_proj1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.learned_joint_proj2 = nn.Linear(hidden, joints, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the joints."""
        return self.learned_joint_proj2(self.learned_joint_proj1(x))
