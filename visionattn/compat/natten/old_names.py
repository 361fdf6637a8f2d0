"""The separate operators by their names up to NATTEN 0.15."""

from collections.abc import Sequence

from torch import Tensor

from visionattn.compat.natten.functional import na1d_av, na1d_qk, na2d_av, na2d_qk, na3d_av, na3d_qk

__all__ = [
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]

PER_AXIS = int | Sequence[int]


def natten1dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int) -> Tensor:
    """Same as `na1d_qk` with a bias; the name up to version 0.15."""
    return na1d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: PER_AXIS, dilation: PER_AXIS) -> Tensor:
    """Same as `na2d_qk` with a bias; the name up to version 0.15."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten3dqkrpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> Tensor:
    """Same as `na3d_qk` with a bias; the name up to version 0.15."""
    return na3d_qk(query, key, (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation), rpb=rpb)


def natten1dqk(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Same as `na1d_qk`; the name up to version 0.15."""
    return na1d_qk(query, key, kernel_size, dilation)


def natten2dqk(query: Tensor, key: Tensor, kernel_size: PER_AXIS, dilation: PER_AXIS) -> Tensor:
    """Same as `na2d_qk`; the name up to version 0.15."""
    return na2d_qk(query, key, kernel_size, dilation)


def natten3dqk(
    query: Tensor, key: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    """Same as `na3d_qk`; the name up to version 0.15."""
    return na3d_qk(query, key, (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation))


def natten1dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Same as `na1d_av`; the name up to version 0.15."""
    return na1d_av(attn, value, kernel_size, dilation)


def natten2dav(attn: Tensor, value: Tensor, kernel_size: PER_AXIS, dilation: PER_AXIS) -> Tensor:
    """Same as `na2d_av`; the name up to version 0.15."""
    return na2d_av(attn, value, kernel_size, dilation)


def natten3dav(
    attn: Tensor, value: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    """Same as `na3d_av`; the name up to version 0.15."""
    return na3d_av(attn, value, (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation))
