"""ONNX implementations of the operators of this package, of standard ONNX operators only.

Each function builds a part of a graph. Its arguments are values of that graph, or Python values for attributes;
symbolic sizes are scalar values.
"""

from collections.abc import Callable

import torch
from onnxscript import FLOAT, script
from onnxscript import opset18 as op

import visionattn.kernels.exporting
import visionattn.kernels.regions
import visionattn.kernels.selection
import visionattn.layers.spatial_reduction  # noqa: F401  these define the operators
from visionattn.inference.export.reduced_attention import grouped_attention, least_attended
from visionattn.kernels.onnx import translations as kernel_translations
from visionattn.kernels.onnx_values import INT64, ints, vector

__all__ = ["translations"]


def translations() -> dict[Callable, Callable]:
    """Return the table for the argument ``custom_translation_table`` of `torch.onnx.export`."""
    ops = torch.ops.visionattn
    return kernel_translations() | {
        ops.pad_end.default: _pad_end,
        ops.crop_end.default: _crop_end,
        ops.top_scores.default: _top_scores,
        ops.nms_mask.default: _nms_mask,
        ops.pyramid_roi_align.default: _pyramid_roi_align,
        ops.largest_region_box.default: _largest_region_box,
        ops.least_attended.default: least_attended,
        ops.grouped_attention.default: grouped_attention,
    }


def _pad_end(x, size):
    wanted, axes = vector(size), list(range(1, len(size) + 1))
    amounts = op.Sub(wanted, op.Shape(x, start=1, end=len(size) + 1))
    pads = op.Concat(ints(*[0] * len(axes)), amounts, axis=0)
    return op.Pad(x, pads, None, ints(*axes))


def _crop_end(x, size):
    axes = list(range(1, len(size) + 1))
    return op.Slice(x, ints(*[0] * len(axes)), vector(size), ints(*axes))


def _top_scores(scores, k: int):
    count = op.Min(ints(k), op.Shape(scores, start=1, end=2))
    values, indices = op.TopK(scores, count, axis=1)
    pads = op.Concat(ints(0), op.Sub(ints(k), count), axis=0)
    values = op.Pad(values, pads, op.Constant(value_float=-1.0), ints(1))
    return values, op.Pad(indices, pads, op.Constant(value_int=0), ints(1))


def _nms_mask(boxes, scores, iou_threshold, limit: int):
    chosen = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, ints(1)), ints(limit), op.Reshape(iou_threshold, ints(1)),
        op.Constant(value_floats=[0.0]),
    )  # fmt: skip
    where = op.Gather(chosen, ints(0, 2), axis=1)
    zeros = op.ConstantOfShape(op.Shape(scores), value=_tensor_proto(0.0))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(where, start=0, end=1))
    return op.Greater(op.ScatterND(zeros, where, ones), op.Constant(value_float=0.5))


def _pyramid_roi_align(maps, rois, levels, scales, output_size, sampling_ratio: int, aligned: bool):
    mode = "half_pixel" if aligned else "output_half_pixel"
    height, width = output_size
    shape = op.Concat(op.Shape(rois, start=0, end=1), op.Shape(maps[0], start=1, end=2), ints(height, width), axis=0)
    out = op.ConstantOfShape(shape, value=_tensor_proto(0.0))
    for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = op.Transpose(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), perm=[1, 0])
        chosen = op.GatherND(rois, rows)
        batch = op.Cast(op.Squeeze(op.Slice(chosen, ints(0), ints(1), ints(1)), ints(1)), to=INT64)
        boxes = op.Slice(chosen, ints(1), ints(5), ints(1))
        aligned_maps = op.RoiAlign(
            feature, boxes, batch, mode="avg", output_height=height, output_width=width,
            sampling_ratio=max(sampling_ratio, 0), spatial_scale=float(scale), coordinate_transformation_mode=mode,
        )  # fmt: skip
        out = op.ScatterND(out, rows, aligned_maps)
    return out


def _tensor_proto(value: float):
    from onnx import helper

    return helper.make_tensor("value", 1, [1], [value])


def _largest_region_box(maps, threshold):
    return region_box(maps, threshold)


@script(default_opset=op)
def region_box(maps: FLOAT["B", "H", "W"], threshold: FLOAT) -> FLOAT["B", 4]:  # noqa: F821
    """As `visionattn.kernels.regions`: the number of the first pixel of each region spreads over the region."""
    above = op.Cast(op.Greater(maps, threshold), to=1)
    height = op.Shape(maps, start=1, end=2)
    width = op.Shape(maps, start=2, end=3)
    batch = op.Shape(maps, start=0, end=1)
    pixels = height * width
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_ints=[0])
    number = op.Range(op.Squeeze(pixels), op.Constant(value_int=0), op.Constant(value_int=-1))
    grid = op.Reshape(op.Cast(number, to=1), op.Concat(one, height, width, axis=0))
    names = grid * above
    changed = op.Constant(value_int=1) > op.Constant(value_int=0)
    while changed:
        pooled = op.MaxPool(op.Unsqueeze(names, one), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        spread = op.Squeeze(pooled, one) * above
        changed = op.ReduceMax(op.Abs(spread - names), keepdims=0) > 0.0
        names = op.Identity(spread)
    flat = op.Cast(op.Reshape(names, op.Concat(batch, pixels, axis=0)), to=7)
    counted = op.Cast(flat > zero, to=1)
    sizes = op.Expand(op.Constant(value_floats=[0.0]), op.Concat(batch, pixels + one, axis=0))
    sizes = op.ScatterElements(sizes, flat, counted, axis=1, reduction="add")
    best = op.ArgMax(sizes, axis=1, keepdims=1, select_last_index=1)
    empty = op.ReduceMax(sizes, one, keepdims=1) == 0.0
    inside = op.Or(op.And(flat == best, op.Not(empty)), empty)
    image = op.Cast(op.Reshape(inside, op.Concat(batch, height, width, axis=0)), to=7)
    columns = op.ReduceMax(image, one, keepdims=0)
    rows = op.ReduceMax(image, op.Constant(value_ints=[2]), keepdims=0)
    x0 = op.ArgMax(columns, axis=1, keepdims=1)
    x1 = op.ArgMax(columns, axis=1, keepdims=1, select_last_index=1) + one
    y0 = op.ArgMax(rows, axis=1, keepdims=1)
    y1 = op.ArgMax(rows, axis=1, keepdims=1, select_last_index=1) + one
    return op.Cast(op.Concat(x0, y0, x1, y1, axis=1), to=1)
