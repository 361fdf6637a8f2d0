"""The local steps of mmcv's synchronised batch normalisation (`MMSyncBN`); mmcv reduces between the ranks.

Inputs are ``[N, C, S]`` with the spatial axes flattened; statistics, weight and bias are ``[C]``, float32.
"""

from torch import Tensor

from .common import operator

__all__ = [
    "sync_bn_backward_data",
    "sync_bn_backward_param",
    "sync_bn_forward_mean",
    "sync_bn_forward_output",
    "sync_bn_forward_var",
]


def _column(statistic: Tensor) -> Tensor:
    return statistic[:, None]


@operator
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of each channel, into `mean`."""
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


@operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean squared distance of each channel from `mean`, into `var`."""
    var.copy_((input.to(mean.dtype) - _column(mean)).square().mean((0, 2)))


@operator
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalise with the given statistics, and move the running ones towards them.

    Args:
        weight, bias: affine part, or None.
        running_mean, running_var: updated in place by `momentum`, the variance unbiased by the number of
            values on all ranks; or None.
        norm: ``[N, C, S]``, gets the input normalised, before the affine part.
        std: ``[C]``, gets the standard deviation.
        output: ``[N, C, S]``.
        eps: added to the variance.
        group_size: number of ranks.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.to(mean.dtype) - _column(mean)) / _column(std))
    result = norm if weight is None else norm * _column(weight) + _column(bias)
    output.copy_(result)
    if running_mean is not None:
        count = input.size(0) * input.size(2) * group_size
        unbiased = var * (count / (count - 1)) if count > 1 else var
        running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
        running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


@operator
def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Gradients of the affine part, into `grad_weight` and `grad_bias`."""
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@operator
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient of the input, into `grad_input`, from those of the affine part averaged over the ranks."""
    grad = grad_output.to(norm.dtype)
    number = grad_output.size(0) * grad_output.size(2)
    through_statistics = (norm * _column(grad_weight) + _column(grad_bias)) / number
    grad_input.copy_((grad - through_statistics) * _column(weight / std))
