"""The steps of a test pipeline inside of an exported program: resizing, and stretching of contrast.

OpenCV resizes in fixed-point arithmetic: its pixels differ by at most one gray level from those of these functions.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["prepend_steps", "resize_image"]

HALF = 0.501
"""Added before rounding down: means of two pixels are rounded up as by OpenCV, whatever the last bit is."""


def resize_image(image: Tensor, steps: Sequence[Mapping[str, Any]]) -> Tensor:
    """Apply steps to images ``[B, 3, H, W]`` in 0..255; float32, whole numbers.

    Args:
        image: the images.
        steps: from `visionattn.inference.export.preprocessing.pixel_steps`.
    """
    image = image.float()
    for step in steps:
        if step["type"] == "AutoContrast":
            low, high = (
                value.double() for value in (image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True))
            )
            factor = torch.full_like(low, 255.0) / (high - low)  # a number over a tensor is rounded twice
            stretched = (image.double() * factor - low * factor).clamp(0, 255).floor()
            image = torch.where(low == high, image, stretched.float())
        else:
            size = _size(step, *image.shape[2:])
            image = F.interpolate(image, size, mode="bilinear", align_corners=False).add(HALF).floor()
    return image


def _size(step: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) after a step; factors are fractions, since programs have no rounding errors then."""
    if step.get("scale") is None:
        factors = _factors(step)
        return tuple(max(1, int(side * factor + 0.5)) for side, factor in zip((height, width), factors, strict=True))
    low, high = _limits(step)
    if not step.get("keep_ratio"):
        return tuple(_pair(step["scale"])[::-1])
    large, small = max(height, width), min(height, width)
    return tuple(
        max(1, min((2 * side * high + large) // (2 * large), (2 * side * low + small) // (2 * small)))
        for side in (height, width)
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _limits(step: Mapping[str, Any]) -> tuple[int, int]:
    scale = [int(side) for side in _pair(step["scale"])]
    return min(scale), max(scale)


def _factors(step: Mapping[str, Any]) -> tuple[float, float]:
    """Return the factors of height and width."""
    return tuple(float(factor) for factor in _pair(step["scale_factor"])[::-1])


def prepend_steps(model: Any, steps: Sequence[Mapping[str, Any]]) -> None:
    """Compute the input ``resized`` of an ONNX model from its input ``image`` by the steps, in place."""
    parser = importlib.import_module("onnx.parser")
    lines = ["x0 = Cast <to=1> (image)"]
    for number, step in enumerate(steps):
        make = _contrast if step["type"] == "AutoContrast" else _resize
        lines += [line.replace("@", f"_{number}_") for line in make(step, f"x{number}", f"x{number + 1}")]
    lines.append(f"resized = Identity (x{len(steps)})")
    text = "\n".join(f"  {line}" for line in lines)
    graph = parser.parse_graph(f"prefix (float[B, C, H, W] image) => (float[B, C, h, w] resized) {{\n{text}\n}}")
    own = {name: f"prefix_{name}" for node in graph.node for name in node.output if name != "resized"}
    for node in graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
        node.output[:] = [own.get(name, name) for name in node.output]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*graph.node, *nodes])
    kept = [value for value in model.graph.input if value.name != "resized"]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _contrast(step: Mapping[str, Any], x: str, out: str) -> list[str]:
    return [
        "axes@ = Constant <value_ints = [2, 3]> ()",
        f"v@ = Cast <to=11> ({x})",
        "low@ = ReduceMin (v@, axes@)",
        "high@ = ReduceMax (v@, axes@)",
        "span@ = Sub (high@, low@)",
        "top@ = Constant <value = double {255.0}> ()",
        "zero@ = Constant <value = double {0.0}> ()",
        "factor@ = Div (top@, span@)",
        "scaled@ = Mul (v@, factor@)",
        "shift@ = Mul (low@, factor@)",
        "moved@ = Sub (scaled@, shift@)",
        "clipped@ = Clip (moved@, zero@, top@)",
        "floor@ = Floor (clipped@)",
        "flat@ = Equal (low@, high@)",
        "chosen@ = Where (flat@, v@, floor@)",
        f"{out} = Cast <to=1> (chosen@)",
    ]


def _resize(step: Mapping[str, Any], x: str, out: str) -> list[str]:
    return [
        f"side@ = Shape <start=2, end=4> ({x})",
        "one@ = Constant <value_ints = [1]> ()",
        *_sides(step),
        "least@ = Max (wanted@, one@)",
        f"outer@ = Shape <start=0, end=2> ({x})",
        "sizes@ = Concat <axis=0> (outer@, least@)",
        f'smooth@ = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> ({x}, , , sizes@)',
        f"half_up@ = Constant <value = float {{{HALF}}}> ()",
        "moved@ = Add (smooth@, half_up@)",
        f"{out} = Floor (moved@)",
    ]


def _sides(step: Mapping[str, Any]) -> list[str]:
    """Return the lines that compute ``wanted@`` from ``side@``, both (height, width)."""
    if step.get("scale") is None:
        rows, columns = _factors(step)
        return [
            f"factors@ = Constant <value = double[2] {{{rows!r}, {columns!r}}}> ()",
            "half@ = Constant <value = double {0.5}> ()",
            "exact@ = Cast <to=11> (side@)",
            "product@ = Mul (exact@, factors@)",
            "sum@ = Add (product@, half@)",
            "wanted@ = Cast <to=7> (sum@)",
        ]
    if not step.get("keep_ratio"):
        width, height = _pair(step["scale"])
        return [f"wanted@ = Constant <value_ints = [{int(height)}, {int(width)}]> ()"]
    low, high = _limits(step)
    lines = [
        f"high@ = Constant <value_ints = [{2 * high}]> ()",
        f"low@ = Constant <value_ints = [{2 * low}]> ()",
        "two@ = Constant <value_ints = [2]> ()",
        "large@ = ReduceMax <keepdims=1> (side@)",
        "small@ = ReduceMin <keepdims=1> (side@)",
    ]
    for limit, extreme in (("high", "large"), ("low", "small")):
        lines += [
            f"product_{limit}@ = Mul (side@, {limit}@)",
            f"sum_{limit}@ = Add (product_{limit}@, {extreme}@)",
            f"double_{limit}@ = Mul ({extreme}@, two@)",
            f"wanted_{limit}@ = Div (sum_{limit}@, double_{limit}@)",
        ]
    return [*lines, "wanted@ = Min (wanted_high@, wanted_low@)"]
