"""Dual cross-attention for fine-grained recognition and re-identification.

Zhu et al., "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification" (CVPR
2022). No code of the authors is public; what the paper leaves open is stated at the functions below.
"""

import copy
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from visionattn.layers._sdpa import attend

__all__ = ["DualCrossAttention", "DualCrossAttentionOutput", "attention_rollout"]


class DualCrossAttentionOutput(NamedTuple):
    """Output of `DualCrossAttention` for N tokens and R selected patches.

    Attributes:
        logits: of the class token after self-attention, ``[B, classes]``.
        local_logits: of the class token after global-local cross-attention, ``[B, classes]``.
        pair_logits: of the class token after pair-wise cross-attention, ``[B, classes]``; None in eval mode.
        features: class tokens of both branches after their norms, concatenated, ``[B, 2 C]``, for retrieval.
        rollout: accumulated attention from the class token to each patch, ``[B, N - prefix]``.
        rows: indices of the selected tokens in ascending order, int64 ``[B, 1 + R]``; the first is the class token.
        tokens, local_tokens, pair_tokens: tokens of the three branches before their norms: ``[B, N, C]``,
            ``[B, 1 + R, C]`` and ``[B, N, C]``.
    """

    logits: Tensor
    local_logits: Tensor
    pair_logits: Tensor | None
    features: Tensor
    rollout: Tensor
    rows: Tensor
    tokens: Tensor
    local_tokens: Tensor
    pair_tokens: Tensor | None


class DualCrossAttention(nn.Module):
    """A vision transformer of timm with global-local and pair-wise cross-attention.

    Global-local cross-attention (GLCA, section 3.2) is one more transformer block. Its queries are the class token and
    the patches with the highest `attention_rollout`; its keys and values are all tokens. Pair-wise cross-attention
    (PWCA, section 3.3) regularizes the training: each image passes through the same blocks a second time, with the keys
    and values of another image of the batch appended to its own. It costs nothing in eval mode.

    GLCA reads the tokens of the last block before the final norm. It has its own norm and classifier; PWCA shares those
    of self-attention.

    Args:
        vit: timm's `VisionTransformer` with a class token and a classifier. It becomes the submodule ``vit``, with
            unchanged parameter names.
        share: fraction of the patches that are queries of GLCA, rounded up. The paper takes 0.1 for fine-grained
            recognition and 0.3 for re-identification.

    Raises:
        ValueError: `share` is out of range, or the model is of another kind.
    """

    def __init__(self, vit: VisionTransformer, share: float = 0.1) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be in (0, 1], got {share}")
        if not isinstance(vit, VisionTransformer) or vit.cls_token is None or not isinstance(vit.head, nn.Linear):
            raise ValueError(
                "`vit` must be a VisionTransformer of timm with a class token and a classifier, "
                f"got a {type(vit).__name__}"
            )
        for block in vit.blocks:
            attn = getattr(block, "attn", None)
            if not isinstance(block, Block) or type(attn) is not Attention or getattr(attn, "gate", None) is not None:
                raise ValueError(f"`vit` must have blocks of timm with standard attention, got {type(block).__name__}")
        self.vit, self.share = vit, share
        self.glca = copy.deepcopy(vit.blocks[-1])
        self.glca_norm = copy.deepcopy(vit.norm if isinstance(vit.norm, nn.LayerNorm) else vit.fc_norm)
        self.glca_head = nn.Linear(vit.embed_dim, vit.head.out_features)
        self.weights = nn.Parameter(torch.zeros(3))
        for module in (self.glca, self.glca_norm, self.glca_head):
            module.apply(_reset)
        like = next(vit.parameters())
        self.to(like.device, like.dtype)

    def forward(self, images: Tensor, partner: Tensor | None = None) -> DualCrossAttentionOutput:
        """Run the branches.

        Args:
            images: ``[B, 3, H, W]``.
            partner: index of the other image of each pair, int64 ``[B]``; None is a random permutation of the batch.
                Only used in training mode.
        """
        vit = self.vit
        start = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        tokens, pairs = start, []
        for block in vit.blocks:
            tokens = _run(block, tokens, recorded=pairs)
        rollout = attention_rollout(pairs, [block.attn.scale for block in vit.blocks])[:, vit.num_prefix_tokens :]
        rows = self._rows(rollout)
        local = _run(self.glca, tokens, rows=rows)
        other = None
        if self.training:
            partner = torch.randperm(len(images), device=images.device) if partner is None else partner
            other = start
            for block in vit.blocks:
                other = _run(block, other, partner=partner)
        final, final_local = vit.norm(tokens), self.glca_norm(local)[:, 0]
        return DualCrossAttentionOutput(
            logits=vit.forward_head(final),
            local_logits=self.glca_head(final_local),
            pair_logits=None if other is None else vit.forward_head(vit.norm(other)),
            features=torch.cat([vit.forward_head(final, pre_logits=True), final_local], 1),
            rollout=rollout,
            rows=rows,
            tokens=tokens,
            local_tokens=local,
            pair_tokens=other,
        )

    def probabilities(self, output: DualCrossAttentionOutput) -> Tensor:
        """Return the class probabilities ``[B, classes]``: the mean of those of self-attention and GLCA."""
        return (output.logits.float().softmax(-1) + output.local_logits.float().softmax(-1)) / 2

    def loss(self, output: DualCrossAttentionOutput, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of each branch with its learned weight (section 3.4).

        The weight w scales a loss L to (exp(-w) L + w) / 2, as in multi-task learning (Kendall et al., arXiv
        1705.07115).

        Args:
            output: return value of `forward` in training mode.
            labels: int64 ``[B]``. Both images of a pair keep their own label.

        Returns:
            ``loss_sa``, ``loss_glca`` and ``loss_pwca``.
        """
        found = {"loss_sa": output.logits, "loss_glca": output.local_logits, "loss_pwca": output.pair_logits}
        given = {name: logits for name, logits in found.items() if logits is not None}
        return {
            name: 0.5 * (torch.exp(-weight) * F.cross_entropy(logits.float(), labels) + weight)
            for (name, logits), weight in zip(given.items(), self.weights, strict=False)
        }

    @torch.no_grad()
    def _rows(self, rollout: Tensor) -> Tensor:
        count = ceil(self.share * rollout.shape[1])
        patches = rollout.topk(count, dim=1).indices.sort(1).values + self.vit.num_prefix_tokens
        return F.pad(patches, (1, 0))


@torch.no_grad()
def attention_rollout(pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> Tensor:
    """Accumulate attention over the layers, from the first token (Abnar and Zuidema, arXiv 2005.00928).

    The result is the first row of the product of ``(S + I) / 2`` over the layers, last layer first, with the attention
    S averaged over the heads. Only this row is carried from layer to layer. It has no gradient.

    Args:
        pairs: queries and keys of each layer, ``[B, heads, N, d]`` each.
        scales: factor of the scores of each layer.

    Returns:
        ``[B, N]``; rows sum to 1.
    """
    query = pairs[0][0]
    row = query.new_zeros(query.shape[0], query.shape[2])
    row[:, 0] = 1
    for (q, k), scale in zip(reversed(pairs), reversed(scales), strict=True):
        spread = torch.zeros_like(row)
        for head in range(q.shape[1]):
            attention = ((q[:, head] * scale) @ k[:, head].mT).softmax(-1)
            spread = spread + (row[:, None] @ attention)[:, 0]
        row = 0.5 * row + 0.5 / q.shape[1] * spread
    return row


def _run(
    block: Block,
    x: Tensor,
    rows: Tensor | None = None,
    partner: Tensor | None = None,
    recorded: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Run a pre-norm block of timm on tokens ``[B, N, C]``.

    Args:
        block: the block.
        x: the tokens.
        rows: tokens that are queries, int64 ``[B, R]``; the result has only these.
        partner: image of the batch whose keys and values are appended, int64 ``[B]``.
        recorded: list that receives queries and keys.
    """
    attn, normed = block.attn, block.norm1(x)
    qkv = attn.qkv(normed).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = attn.q_norm(qkv[0]), attn.k_norm(qkv[1]), qkv[2]
    if recorded is not None:
        recorded.append((q.detach(), k.detach()))
    if rows is not None:
        x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
        q = q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    if partner is not None:
        k, v = torch.cat([k, k[partner]], 2), torch.cat([v, v[partner]], 2)
    out = attend(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0, scale=attn.scale)
    out = attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))
    x = x + block.drop_path1(block.ls1(out))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _reset(module: nn.Module) -> None:
    """Initialize as timm's vision transformers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
