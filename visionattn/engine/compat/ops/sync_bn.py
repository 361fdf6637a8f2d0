"""The local steps of synchronized batch normalization in mmcv (`MMSyncBN`), which reduces between the ranks.

Inputs are ``[N, C, S]`` with flattened spatial dimensions; statistics, weight and bias are float32 ``[C]``.
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
    """Write the mean of each channel to `mean`."""
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


@operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared deviation of each channel from `mean` to `var`."""
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
    """Normalize with the given statistics and update the running statistics.

    Args:
        weight, bias: affine parameters, or None.
        running_mean, running_var: updated in place with `momentum`, with the unbiased variance over the values of all
            ranks; or None.
        norm: ``[N, C, S]``, receives the normalized input before the affine transform.
        std: ``[C]``, receives the standard deviation.
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
    """Write the gradients of the affine parameters to `grad_weight` and `grad_bias`."""
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
    """Write the gradient of the input to `grad_input`, from the affine gradients averaged over the ranks."""
    grad = grad_output.to(norm.dtype)
    number = grad_output.size(0) * grad_output.size(2)
    through_statistics = (norm * _column(grad_weight) + _column(grad_bias)) / number
    grad_input.copy_((grad - through_statistics) * _column(weight / std))
