"""Focal losses (Lin et al., 2017) without reduction.

Logarithms are computed from the logits, so the losses are exact where those of compiled kernels saturate, which round
the sigmoid to 0 or 1 and clamp the logarithm at -87.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import operator, work_dtype

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


def _row_weight(target: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | float:
    """Return ``weight[target]``, and 1 for labels that are not a class (background, ignored)."""
    if not weight.numel():
        return 1.0
    known = (target >= 0) & (target < weight.numel())
    return torch.where(known, weight.to(dtype)[target.where(known, 0)], 1.0)


def _one_hot(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.size(1), device=input.device)


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss, written to `output`.

    It is ``-alpha (1 - p)^gamma log p`` for the target class of each row and ``-(1 - alpha) p^gamma log(1 - p)`` for
    the other classes.

    Args:
        input: logits ``[N, C]``.
        target: labels ``[N]``; labels outside [0, C), such as -1 or C, are background without a positive class.
        weight: weight per class ``[C]``, selected by the label of the row (1 for background), or empty.
        output: ``[N, C]``.
        gamma, alpha: focusing exponent, and weight of the positive class.
    """
    x = input.to(work_dtype(input))
    p = x.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * F.logsigmoid(x)
    negative = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-x)
    loss = torch.where(_one_hot(x, target), positive, negative)
    factor = _row_weight(target, weight, x.dtype)
    output.copy_(loss * (factor[:, None] if isinstance(factor, Tensor) else factor))


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element of `sigmoid_focal_loss_forward` in its logit to `grad_input`."""
    x = input.to(work_dtype(input))
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = alpha * q.pow(gamma) * (gamma * p * F.logsigmoid(x) - q)
    negative = (1 - alpha) * p.pow(gamma) * (p - gamma * q * F.logsigmoid(-x))
    slope = torch.where(_one_hot(x, target), positive, negative)
    factor = _row_weight(target, weight, x.dtype)
    grad_input.copy_(slope * (factor[:, None] if isinstance(factor, Tensor) else factor))


def _label_probability(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability of the label, its logarithm, and True for rows with a label; all ``[N]``."""
    known = (target >= 0) & (target < softmax.size(1))
    p = softmax.gather(1, target.where(known, 0)[:, None]).squeeze(1)
    return p, p.clamp(min=torch.finfo(torch.float32).tiny).log(), known


@operator
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Softmax focal loss ``-alpha (1 - p)^gamma log p`` of the target class, written to `output`.

    Args:
        input: probabilities after the softmax, ``[N, C]``.
        target: labels ``[N]``; the loss is 0 for labels outside [0, C), such as -1.
        weight: weight per class ``[C]``, or empty.
        output: ``[N]``.
        gamma, alpha: focusing exponent, and factor.
    """
    p, log_p, known = _label_probability(input.to(work_dtype(input)), target)
    loss = -alpha * (1 - p).pow(gamma) * log_p * _row_weight(target, weight, p.dtype)
    output.copy_(loss.where(known, 0))


@operator
def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of `softmax_focal_loss_forward` in the logits to `grad_input` ``[N, C]``.

    Args:
        buff: ``[N]``, receives the derivative in the log-probability of the label.
    """
    softmax = input.to(work_dtype(input))
    p, log_p, known = _label_probability(softmax, target)
    rest = (1 - p).clamp(min=torch.finfo(torch.float32).tiny)  # negative powers of 0 are infinite
    slope = alpha * (gamma * rest.pow(gamma - 1) * p * log_p - (1 - p).pow(gamma))
    slope = (slope * _row_weight(target, weight, p.dtype)).where(known, 0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_one_hot(softmax, target).to(softmax) - softmax))
