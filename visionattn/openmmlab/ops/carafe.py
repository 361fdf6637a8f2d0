"""CARAFE upsampling: each output pixel is a predicted mixture of the input pixels around it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import operator, work_dtype

__all__ = ["carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward"]


def _neighbours(features: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """The padded map seen from each of the ``kernel_size ** 2`` neighbour positions, as views."""
    height, width = features.shape[-2] - kernel_size + 1, features.shape[-1] - kernel_size + 1
    for i in range(kernel_size):
        for j in range(kernel_size):
            yield features[..., i : i + height, j : j + width]


def _split(
    features: Tensor, masks: Tensor, upsampled: Tensor, kernel_size: int, groups: int, scale: int
) -> tuple:
    """Views with shared axes: features padded ``[N, G, C/G, H+, W+]``, masks ``[k*k, N, G, 1, H, s, W, s]``,
    upsampled ``[N, G, C/G, H, s, W, s]``."""
    batch, channels, height, width = features.shape
    dtype, reach = work_dtype(features), kernel_size // 2
    padded = F.pad(features.to(dtype), [reach] * 4)
    padded = padded.view(batch, groups, channels // groups, height + 2 * reach, width + 2 * reach)
    masks = masks.to(dtype).reshape(batch, groups, kernel_size**2, 1, height, scale, width, scale)
    upsampled = upsampled.to(dtype).reshape(batch, groups, channels // groups, height, scale, width, scale)
    return padded, masks.permute(2, 0, 1, 3, 4, 5, 6, 7), upsampled


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE (Wang et al., 2019, eq. 4) into `output`; zeros lie beyond the border.

    Args:
        features: ``[N, C, H, W]``.
        masks: ``[N, group_size * kernel_size ** 2, H * scale_factor, W * scale_factor]``, the mixtures.
        output: ``[N, C, H * scale_factor, W * scale_factor]``.
        kernel_size: odd, side of the neighbourhood.
        group_size: groups of channels sharing a mixture.
        scale_factor: integer upsampling factor.
    """
    padded, mixture, total = _split(
        features, masks, torch.zeros_like(output), kernel_size, group_size, scale_factor
    )
    for mask_k, feature_k in zip(mixture, _neighbours(padded, kernel_size), strict=True):
        total.addcmul_(mask_k, feature_k[..., None, :, None])
    output.copy_(total.view_as(output))


@operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of `carafe_naive_forward`, written into `bottom_grad` (features) and `mask_grad`."""
    padded, mixture, grad = _split(features, masks, top_grad, kernel_size, group_size, scale_factor)
    padded_grad = torch.zeros_like(padded)
    mixture_grad = []
    for mask_k, feature_k, grad_k in zip(
        mixture, _neighbours(padded, kernel_size), _neighbours(padded_grad, kernel_size), strict=True
    ):
        grad_k += (grad * mask_k).sum((-3, -1))
        mixture_grad.append((grad * feature_k[..., None, :, None]).sum(2))
    reach = kernel_size // 2
    height, width = features.shape[2:]
    inner = padded_grad.flatten(1, 2)[..., reach : reach + height, reach : reach + width]
    bottom_grad.copy_(inner)
    mask_grad.copy_(torch.stack(mixture_grad, 2).view_as(mask_grad))


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_naive_forward` with the work space of compiled kernels.

    Args:
        rfeatures: like features; gets a copy of them, which mmcv hands to `carafe_backward`.
        routput, rmasks: unused.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of `carafe_forward`, written into `bottom_grad` and `mask_grad`; other buffers are unused."""
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )
