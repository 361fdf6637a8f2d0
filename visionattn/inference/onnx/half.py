"""Exported files whose networks compute in float16."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.inference.onnx.graph import captured, float_names, network_nodes, restore_metadata, simplified

__all__ = ["to_half"]

FLOAT32_ONLY = {"CumSum", "GridSample", "NonMaxSuppression", "Range", "RoiAlign", "TopK"}
"""Operators without float16 in some runtimes."""
FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 by the standard: region and scales."""


def to_half(path: str | Path, out: str | Path) -> None:
    """Write a copy of an exported file in which backbone, neck and heads compute in float16.

    Inputs, outputs, normalization and decoding remain in float32, since float16 represents no coordinates above 2,048
    exactly. So do the bodies of loops, such as attention between neighbors.

    `onnxruntime.transformers.float16` would also round every tensor between two nodes that remain in float32.
    """
    onnx = require("onnx", "onnx")
    cast_to, limit = onnx.TensorProto.FLOAT16, float(np.finfo(np.float16).max)
    model = simplified(path)
    graph, floats, network = model.graph, float_names(model), network_nodes(model)
    loops = {node.name for node in graph.node if any(entry.HasField("g") for entry in node.attribute)}
    chosen = {node.name for node in graph.node if node.name in network - loops and node.op_type not in FLOAT32_ONLY}
    inputs = {value.name for value in graph.input}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    needed = {name for node in graph.node if node.name not in chosen for name in (*node.input, *captured(node))}
    needed |= {value.name for value in graph.output}
    nodes: list[Any] = []
    made: set[str] = set()

    def in_half(name: str) -> str:
        half = f"{name}_float16"
        if half not in made:
            made.add(half)
            if name in weights:
                values = onnx.numpy_helper.to_array(weights[name]).clip(-limit, limit).astype(np.float16)
                graph.initializer.append(onnx.numpy_helper.from_array(values, half))
            else:
                nodes.append(onnx.helper.make_node("Cast", [name], [half], f"{half}_cast", to=cast_to))
        return half

    for node in list(graph.node):
        if node.name not in chosen:
            nodes.append(node)
            continue
        skipped = FLOAT32_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name in floats and index not in skipped:
                node.input[index] = in_half(name)
            elif name in weights:
                needed.add(name)
        nodes.append(node)
        for entry in node.attribute:
            if node.op_type == "Cast" and entry.name == "to":
                entry.i = cast_to
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = f"{name}_float16"
                made.add(node.output[index])
                if name in needed:
                    nodes.append(onnx.helper.make_node("Cast", [node.output[index]], [name], f"{name}_cast", to=1))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensor in [tensor for name, tensor in weights.items() if name not in needed]:
        graph.initializer.remove(tensor)
    restore_metadata(model, model, precision="float16")
    onnx.checker.check_model(model)
    onnx.save(model, out)
