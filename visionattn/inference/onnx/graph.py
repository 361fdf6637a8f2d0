"""The parts of the graph of an exported file."""

import tempfile
from pathlib import Path
from typing import Any

from visionattn.errors import require

__all__ = ["WEIGHTED", "captured", "float_names", "network_nodes", "restore_metadata", "simplified", "weighted_nodes"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators of convolutions and linear layers."""
POSITIONS = {"RoiAlign": (1, 2), "GridSample": (1,), "NonMaxSuppression": (0, 1, 2, 3, 4)}
"""Inputs of operators that are boxes or positions, not features."""


def simplified(path: str | Path) -> Any:
    """Return a file as a model in which constants are folded, so that weights are initializers; types are inferred."""
    onnx, runtime = require("onnx", "onnx"), require("onnxruntime", "onnx")
    source = onnx.load(path)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(source).graph.value_info
    }
    for node in source.graph.node:
        if node.op_type == "CastLike":  # is not folded, as it has no kernel
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", types[node.output[0]]))
            del node.input[1:]
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "model.onnx"))
        runtime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    for entry in [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]:
        model.opset_import.remove(entry)
    del model.graph.value_info[:]
    restore_metadata(model, source)
    return onnx.shape_inference.infer_shapes(model)


def float_names(model: Any) -> set[str]:
    """Return the names of the float32 tensors of a model with inferred types."""
    kind = require("onnx", "onnx").TensorProto.FLOAT
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == kind}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == kind}


def weighted_nodes(model: Any) -> list[Any]:
    """Return the convolutions and linear layers: nodes that multiply with an initializer of two or more axes."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    return [
        node
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights
    ]


def network_nodes(model: Any) -> set[str]:
    """Return the names of the nodes of backbone, neck and heads.

    These are the convolutions and linear layers, and the nodes on paths of float tensors between two of them.
    Normalization precedes the first of them, and decoding follows the last. Paths do not lead through boxes and
    sampling positions, since coordinates need float32.
    """
    floats, layers = float_names(model), {node.name for node in weighted_nodes(model)}

    def inputs(node: Any) -> list[str]:
        skipped = POSITIONS.get(node.op_type, ())
        direct = [name for index, name in enumerate(node.input) if index not in skipped]
        return [name for name in (*direct, *captured(node)) if name in floats]

    nodes = list(model.graph.node)  # in topological order
    behind, before = set(), set()
    reached: set[str] = set()
    for node in nodes:
        if node.name in layers or reached.intersection(inputs(node)):
            behind.add(node.name)
            reached.update(name for name in node.output if name in floats)
    needed: set[str] = set()
    for node in reversed(nodes):
        if node.name in layers or needed.intersection(node.output):
            before.add(node.name)
            needed.update(inputs(node))
    return behind & before


def captured(node: Any) -> set[str]:
    """Return the names of the tensors that the graphs within a node, such as the body of a loop, read from outside."""
    found: set[str] = set()
    for entry in node.attribute:
        for graph in (entry.g, *entry.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own.update(name for inner in graph.node for name in inner.output)
            read = {name for inner in graph.node for name in (*inner.input, *captured(inner))}
            found |= (read | {value.name for value in graph.output}) - own - {""}
    return found


def restore_metadata(model: Any, source: Any, **changes: str) -> None:
    """Give a model the metadata of another, with changes."""
    entries = {entry.key: entry.value for entry in source.metadata_props} | changes
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
