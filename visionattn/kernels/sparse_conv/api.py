"""Sparse 3D convolution and depthwise convolution on active voxels, on CPU and CUDA, with gradients."""

import torch
from torch import Tensor

from visionattn.kernels import backends
from visionattn.kernels.sparse_conv.neighbors import Neighbors
from visionattn.kernels.sparse_conv.ops import sparse_conv_triton
from visionattn.kernels.sparse_conv.torch.pairs import Convolution, DepthwiseConvolution, convolve
from visionattn.kernels.transforms import autocast_dtype, is_transformed

__all__ = ["sparse_conv3d", "sparse_depthwise_conv3d"]


OPERATOR = "sparse_conv3d"


def sparse_conv3d(
    features: Tensor,
    weight: Tensor,
    neighbors: Neighbors,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sparse 3D convolution: ``out[p] = sum over offsets o of weight[o] in[p * stride - padding + o]``.

    Absent voxels count as zero (Graham et al., CVPR 2018; spconv).

    Args:
        features: ``[N, C]``, float32, float64, bfloat16 or float16; half-precision types are accumulated in float32.
        weight: ``[C', kD, kH, kW, C]``, as in spconv.
        neighbors: the neighbors of the voxels for the kernel, which all layers with this kernel can share.
        bias: ``[C']``, added at the output voxels, or None.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, or None for the best available one (see
            `kernels.backends.explain`).

    Returns:
        ``[M, C']``, in the order of ``neighbors.coords``.

    Raises:
        ValueError: invalid arguments.
        BackendError: the given backend cannot run.
    """
    _check(features, weight, neighbors)
    if weight.dim() != 5 or weight.shape[4] != features.shape[1] or tuple(weight.shape[1:4]) != neighbors.kernel_size:
        raise ValueError(
            f"`weight` must have shape [out, {', '.join(map(str, neighbors.kernel_size))}, {features.shape[1]}], "
            f"got {list(weight.shape)}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise ValueError(
            f"`bias` must have shape [{weight.shape[0]}] on the device of `weight`, {weight.device}, "
            f"got {list(bias.shape)} on {bias.device}"
        )
    features, weight = _cast(features, weight)
    flat = weight.permute(1, 2, 3, 4, 0).reshape(-1, weight.shape[4], weight.shape[0])
    out = _apply(Convolution, features, flat, neighbors, backend)
    return out if bias is None else out + bias.to(out.dtype)


def sparse_depthwise_conv3d(
    features: Tensor, weight: Tensor, neighbors: Neighbors, *, backend: str | None = None
) -> Tensor:
    """Depthwise version of `sparse_conv3d`.

    Args:
        features: ``[N, C]``.
        weight: ``[kD, kH, kW, C]``, as in ScatterFormer.
        neighbors: the neighbors of the voxels for the kernel.
        backend: as in `sparse_conv3d`.

    Returns:
        ``[M, C]``, in the order of ``neighbors.coords``.

    Raises:
        ValueError: invalid arguments.
        BackendError: the given backend cannot run.
    """
    _check(features, weight, neighbors)
    if tuple(weight.shape) != (*neighbors.kernel_size, features.shape[1]):
        raise ValueError(
            f"`weight` must have shape {[*neighbors.kernel_size, features.shape[1]]}, got {list(weight.shape)}"
        )
    features, weight = _cast(features, weight)
    return _apply(DepthwiseConvolution, features, weight.flatten(0, 2), neighbors, backend)


def _apply(
    function: type[torch.autograd.Function],
    features: Tensor,
    weight: Tensor,
    neighbors: Neighbors,
    backend: str | None,
) -> Tensor:
    chosen = backends.select(OPERATOR, features.device, features.dtype, backend)
    if chosen == "reference" or is_transformed(features, weight) or torch.jit.is_tracing():
        return convolve(features, weight, neighbors)
    if chosen == "triton":
        # The transposed table is for the gradient of the features only.
        wanted = torch.is_grad_enabled() and features.requires_grad
        transposed = neighbors.transposed_table if wanted else neighbors.table
        return sparse_conv_triton(features, weight, neighbors.table, transposed)
    return function.apply(features, weight, neighbors)


def _check(features: Tensor, weight: Tensor, neighbors: Neighbors) -> None:
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"`features` must be floating-point [voxels, channels], got {features.dtype} {list(features.shape)}"
        )
    if features.shape[0] != neighbors.num_inputs:
        raise ValueError(f"`features` must have {neighbors.num_inputs} rows, as `neighbors`, got {features.shape[0]}")
    if weight.device != features.device or not weight.is_floating_point():
        raise ValueError(
            f"`weight` must be floating-point on the device of `features`, {features.device}, "
            f"got {weight.dtype} on {weight.device}"
        )
    if neighbors.coords.device != features.device:
        devices = f"{neighbors.coords.device}, got {features.device}"
        raise ValueError(f"`features` must be on the device of `neighbors`, {devices}")


def _cast(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast to the dtype of autocast if it is enabled, like the convolutions of PyTorch."""
    dtype = autocast_dtype(features.device.type, features.dtype)
    return features.to(dtype), weight.to(dtype)
