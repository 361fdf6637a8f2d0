"""Sparse 3-D convolution, whole and depthwise, on the voxels that there are: CPU and CUDA, with gradients."""

import torch
from torch import Tensor

from visionattn.kernels.sparse_conv.neighbors import Neighbors
from visionattn.kernels.sparse_conv.torch.pairs import Convolution, DepthwiseConvolution

__all__ = ["sparse_conv3d", "sparse_depthwise_conv3d"]


def sparse_conv3d(features: Tensor, weight: Tensor, neighbors: Neighbors, bias: Tensor | None = None) -> Tensor:
    """Cross-correlation of voxels: ``out[p] = sum over offsets o of weight[o] in[p * stride - padding + o]``.

    Terms whose voxel is absent are left out, as if it were zero (Graham et al., CVPR 2018; spconv).

    Args:
        features: ``[N, C]``, float32, float64, bfloat16 or float16; half types are summed in float32.
        weight: ``[C', kD, kH, kW, C]``, spconv's layout.
        neighbors: of the voxels and the kernel, see `Neighbors`; made once, it serves all layers of its shape.
        bias: ``[C']``, added at the output voxels, or None.

    Returns:
        ``[M, C']``, rows as ``neighbors.coords``.

    Raises:
        ValueError: for arguments that do not fit together; the message names the argument.
    """
    _check(features, weight, neighbors)
    if weight.dim() != 5 or weight.shape[4] != features.shape[1] or tuple(weight.shape[1:4]) != neighbors.kernel_size:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be [out, {', '.join(map(str, neighbors.kernel_size))}, "
            f"{features.shape[1]}] for these features and neighbors"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)} on {bias.device}; it must be [{weight.shape[0]}] on {weight.device}, "
            "as the weight"
        )
    features, weight = _cast(features, weight)
    flat = weight.permute(1, 2, 3, 4, 0).reshape(-1, weight.shape[4], weight.shape[0])
    out = Convolution.apply(features, flat, neighbors)
    return out if bias is None else out + bias.to(out.dtype)


def sparse_depthwise_conv3d(features: Tensor, weight: Tensor, neighbors: Neighbors) -> Tensor:
    """As `sparse_conv3d`, each channel by itself.

    Args:
        features: ``[N, C]``.
        weight: ``[kD, kH, kW, C]``, ScatterFormer's layout.
        neighbors: of the voxels and the kernel.

    Returns:
        ``[M, C]``, rows as ``neighbors.coords``.

    Raises:
        ValueError: for arguments that do not fit together; the message names the argument.
    """
    _check(features, weight, neighbors)
    if tuple(weight.shape) != (*neighbors.kernel_size, features.shape[1]):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be {(*neighbors.kernel_size, features.shape[1])} for "
            "these features and neighbors"
        )
    features, weight = _cast(features, weight)
    return DepthwiseConvolution.apply(features, weight.flatten(0, 2), neighbors)


def _check(features: Tensor, weight: Tensor, neighbors: Neighbors) -> None:
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"features is {features.dtype} {tuple(features.shape)}; it must be floating [voxels, channels]"
        )
    if features.shape[0] != neighbors.num_inputs:
        raise ValueError(f"features has {features.shape[0]} rows; the neighbors are of {neighbors.num_inputs} voxels")
    if weight.device != features.device or not weight.is_floating_point():
        raise ValueError(
            f"weight is {weight.dtype} on {weight.device}; it must be floating on {features.device}, as the features"
        )
    if neighbors.coords.device != features.device:
        raise ValueError(f"features is on {features.device}, but the neighbors are on {neighbors.coords.device}")


def _cast(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The type of autocast where it is on, as PyTorch's own convolutions do."""
    device = features.device.type
    dtype = features.dtype
    if dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return features.to(dtype), weight.to(dtype)
