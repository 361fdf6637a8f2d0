"""Repair of DiNAT in recent versions of transformers.

In recent versions of transformers (4.57 and 5.24, not in 4.46), the attention of DiNAT divides the channels into heads
as for a sequence of tokens, so that the operators of NATTEN get tensors with axes in the wrong places, and every model
raises an error.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.compat.natten.old_names import natten2dav, natten2dqkrpb

__all__ = ["repair_transformers"]


def repair_transformers() -> bool:
    """Replace the attention of transformers' DiNAT if it raises an error or gives a wrong result.

    Call it after `install`, before or after models are created.

    Returns:
        True if the attention was replaced, False if it is right.

    Raises:
        ModuleNotFoundError: transformers is not installed, or has no DiNAT.
    """
    from transformers.models.dinat import modeling_dinat

    attention = modeling_dinat.NeighborhoodAttention
    if _is_right(attention):
        return False
    attention.forward = _forward
    return True


def _is_right(attention: type[nn.Module]) -> bool:
    """Compare the attention on a small map with the repaired one."""
    config = SimpleNamespace(qkv_bias=True, attention_probs_dropout_prob=0.0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = attention(config, 8, 2, 3, 1).eval()
        x = torch.randn(1, 4, 5, 8)
        try:
            (out,) = module(x)
        except Exception:  # of any kind, as the tensors have other axes than the operators expect
            return False
        (expected,) = _forward(module, x)
    return out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)


def _forward(self: Any, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
    """Attention on ``[batch, height, width, channels]``; also returns the probabilities if they are asked for."""

    def heads(x: Tensor) -> Tensor:  # to [batch, heads, height, width, head_dim]
        return x.unflatten(-1, (self.num_attention_heads, -1)).movedim(-2, 1)

    query, key, value = (heads(project(hidden_states)) for project in (self.query, self.key, self.value))
    query = query * self.attention_head_size**-0.5
    scores = natten2dqkrpb(query, key, self.rpb, self.kernel_size, self.dilation)
    probability = self.dropout(scores.softmax(-1))
    context = natten2dav(probability, value, self.kernel_size, self.dilation).movedim(1, -2).flatten(-2)
    return (context, probability) if output_attentions else (context,)
