"""ONNX implementations of the attention operators. Importing it imports onnxscript."""

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from onnxscript import opset18 as op

import visionattn.kernels.neighborhood
import visionattn.kernels.routing  # noqa: F401  defines the operators
from visionattn.kernels.neighborhood.onnx.gathered import gathered_attention
from visionattn.kernels.neighborhood.onnx.tiled import tiled_attention
from visionattn.kernels.onnx_values import number
from visionattn.kernels.routing.onnx import routing_attention

__all__ = ["translations"]


def translations() -> dict[Callable, Callable]:
    """Return a table for the argument ``custom_translation_table`` of `torch.onnx.export`.

    The functions build graphs of standard operators of opset 18, for sizes and dilations that may be symbolic. A table
    can be used for a single export, since it refers to values of the graph.
    """
    known: dict[Hashable, Any] = {}
    numbers = itertools.count()

    def attention(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale: float, return_lse: bool):
        if any(is_causal) or any(step != 1 for step in stride):
            return gathered_attention(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale)
        return tiled_attention(q, k, v, rpb, kernel_size, dilation, scale, return_lse, known, f"tiles_{next(numbers)}")

    return {
        torch.ops.visionattn.neighborhood_attention.default: attention,
        torch.ops.visionattn.routing_attention.default: routing_attention,
        torch.ops.aten.gelu.default: _gelu,
    }


def _gelu(x, approximate: str = "none"):
    """With the factors in the order in which ONNX Runtime recognizes GELU as one operator."""
    if approximate == "tanh":
        cube = op.Mul(op.Mul(x, op.Mul(x, x)), number(0.044715, x))
        inner = op.Tanh(op.Mul(op.Add(x, cube), number(math.sqrt(2 / math.pi), x)))
    else:
        inner = op.Erf(op.Div(x, number(math.sqrt(2), x)))
    return op.Mul(op.Mul(x, op.Add(inner, number(1.0, x))), number(0.5, x))
