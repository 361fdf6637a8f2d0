"""Neighborhood attention with a gather of the keys and values of each query, for strides and causal axes in ONNX."""

from onnxscript import opset18 as op

from visionattn.kernels.neighborhood.onnx.axes import outer
from visionattn.kernels.onnx_values import ints, scalar

__all__ = ["gathered_attention"]


def gathered_attention(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale):
    """Gather the keys and values of each query; they take ``prod(kernel_size)`` times the memory of the map.

    Arguments and results as for `tiled_attention`, with `stride` and `is_causal` for each axis.
    """
    rank = len(kernel_size)
    position, offset, valid = _axis(op.Shape(q, start=1, end=2), kernel_size[0], stride[0], dilation[0], is_causal[0])
    for axis in range(1, rank):
        length = op.Shape(q, start=axis + 1, end=axis + 2)
        given = kernel_size[axis], stride[axis], dilation[axis], is_causal[axis]
        position_n, offset_n, valid_n = _axis(length, *given)
        position = outer(op.Add, position, position_n, length)
        offset = outer(op.Add, offset, offset_n, ints(2 * kernel_size[axis] - 1))
        valid = outer(op.And, valid, valid_n)
    flat = ints(-1)
    q_BNHD = op.Mul(_merge_axes(q, rank), op.Constant(value_float=scale))
    k_BHNDK, v_BHNKD = (
        op.Transpose(op.Gather(_merge_axes(x, rank), position, axis=1), perm=perm)
        for x, perm in ((k, [0, 3, 1, 4, 2]), (v, [0, 3, 1, 2, 4]))
    )
    q_BHN1D = op.Unsqueeze(op.Transpose(q_BNHD, perm=[0, 2, 1, 3]), ints(3))
    logits = op.MatMul(q_BHN1D, k_BHNDK)  # [B, H, N, 1, K]
    if rpb is not None:
        heads = op.Shape(rpb, start=0, end=1)
        bias = op.Gather(op.Reshape(rpb, op.Concat(heads, flat, axis=0)), offset, axis=1)  # [H, N, K]
        logits = op.Add(logits, op.Unsqueeze(bias, ints(2)))
    if any(is_causal):
        mask = op.Unsqueeze(valid, ints(1))  # [N, 1, K]
        logits = op.Where(mask, logits, op.Constant(value_float=float("-inf")))
    out = op.MatMul(op.Softmax(logits, axis=-1), v_BHNKD)  # [B, H, N, 1, D]
    out = op.Transpose(op.Squeeze(out, ints(3)), perm=[0, 2, 1, 3])
    shape = op.Concat(op.Shape(q, start=0, end=rank + 2), op.Shape(v, start=rank + 2, end=rank + 3), axis=0)
    lse = op.Squeeze(op.ReduceLogSumExp(logits, ints(-1), keepdims=0), ints(-1))
    lse = op.Reshape(op.Transpose(lse, perm=[0, 2, 1]), op.Shape(q, start=0, end=rank + 2))
    return op.Reshape(out, shape), lse


def _merge_axes(x, rank):
    """Return ``[B, N, heads, d]``."""
    shape = op.Concat(op.Shape(x, start=0, end=1), ints(-1), op.Shape(x, start=rank + 1, end=rank + 3), axis=0)
    return op.Reshape(x, shape)


def _axis(length, kernel: int, stride: int, dilation, causal):
    """As `visionattn.kernels.neighborhood.gather`: key positions, indices into the bias, and a mask of one axis."""
    one, zero = op.Constant(value_int=1), op.Constant(value_int=0)
    step = scalar(dilation)
    length = op.Squeeze(length)
    x = op.Range(zero, length, one)
    group, inner = op.Mod(x, step), op.Div(x, step)
    group_length = op.Div(op.Sub(op.Add(op.Sub(length, group), step), one), step)
    stride_ = op.Constant(value_int=stride)
    block = op.Mul(op.Div(inner, stride_), stride_)
    last = op.Sub(group_length, one)
    if causal:
        leader = op.Min(op.Add(block, op.Constant(value_int=stride - 1)), last)
        start = op.Sub(leader, op.Constant(value_int=kernel - 1))
    else:
        leader = op.Min(op.Add(block, op.Constant(value_int=stride // 2)), last)
        start = op.Max(op.Sub(leader, op.Constant(value_int=kernel // 2)), zero)
        start = op.Min(start, op.Sub(group_length, op.Constant(value_int=kernel)))
    column = ints(1)
    neighbor = op.Add(op.Unsqueeze(start, column), op.Unsqueeze(ints(*range(kernel)), ints(0)))
    own = op.Unsqueeze(inner, column)
    offset = op.Add(op.Sub(neighbor, own), op.Constant(value_int=kernel - 1))
    valid = op.And(op.GreaterOrEqual(neighbor, zero), op.LessOrEqual(neighbor, own))
    if causal:
        neighbor = op.Where(valid, neighbor, own)
    else:
        valid = op.Or(valid, op.Not(valid))
    return op.Add(op.Unsqueeze(group, column), op.Mul(neighbor, step)), offset, valid
