"""How much the outputs of a network change if one of its layers is quantized."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.inference.onnx.graph import captured, float_names, network_nodes, weighted_nodes

__all__ = ["by_sensitivity"]

FLAGS = "quantized_layers"


def by_sensitivity(model: Any, inputs: Sequence[np.ndarray]) -> list[str]:
    """Return the names of the convolutions and linear layers, those whose quantization changes most first.

    For each layer alone, its input is rounded to 8 bits and its weights to 7 bits. The change is the squared error of
    the outputs of the network before decoding, relative to their mean square.

    Args:
        model: from `visionattn.inference.onnx.graph.simplified`.
        inputs: batches of images as the program takes them.
    """
    onnx, runtime = require("onnx", "onnx"), require("onnxruntime", "onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    targets = _outputs(model)
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    graph, make = switched.graph, onnx.helper.make_node
    layers = weighted_nodes(switched)
    nodes = []
    for node in graph.node:
        index = next((i for i, layer in enumerate(layers) if layer.name == node.name), None)
        if index is not None:
            x, weight = node.input[:2]
            axis = -1 if node.op_type == "MatMul" else 1 if node.op_type == "ConvTranspose" else 0
            tag = f"switch_{index}"
            rounded = _rounded(onnx.numpy_helper.to_array(weights[weight]), axis)
            graph.initializer.append(onnx.numpy_helper.from_array(rounded, f"{tag}_w"))
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(index), f"{tag}_i"))
            nodes += [
                make("Gather", [FLAGS, f"{tag}_i"], [f"{tag}_on"]),
                make("DynamicQuantizeLinear", [x], [f"{tag}_q", f"{tag}_s", f"{tag}_z"]),
                make("DequantizeLinear", [f"{tag}_q", f"{tag}_s", f"{tag}_z"], [f"{tag}_x"]),
                make("Where", [f"{tag}_on", f"{tag}_x", x], [f"{tag}_input"]),
                make("Where", [f"{tag}_on", f"{tag}_w", weight], [f"{tag}_weight"]),
            ]
            node.input[0], node.input[1] = f"{tag}_input", f"{tag}_weight"
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info(FLAGS, onnx.TensorProto.BOOL, [len(layers)]))
    known = {value.name for value in graph.output}
    float32 = onnx.TensorProto.FLOAT
    graph.output.extend(onnx.helper.make_tensor_value_info(n, float32, None) for n in targets if n not in known)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(switched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    change = dict.fromkeys((layer.name for layer in layers), 0.0)
    for batch in inputs:
        flags = np.zeros(len(layers), bool)
        expected = session.run(list(targets), {"image": batch, FLAGS: flags})
        for index, layer in enumerate(layers):
            flags[:] = False
            flags[index] = True
            found = session.run(list(targets), {"image": batch, FLAGS: flags})
            in_regions = any(layer.name in behind for behind in targets.values() if behind)
            for name, one, other in zip(targets, expected, found, strict=True):
                # another quantized layer before them may change the order of the regions
                if bool(targets[name]) == in_regions and one.shape == other.shape and one.size:
                    change[layer.name] += float(np.square(one - other).mean() / (np.square(one).mean() + 1e-12))
    return sorted(change, key=lambda name: -change[name])


def _outputs(model: Any) -> dict[str, set[str]]:
    """Return the float tensors that leave the network; for those of regions, with the nodes that process regions."""
    network, floats = network_nodes(model), float_names(model)
    regions: set[str] = set()
    reached: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "RoiAlign" or (node.name in network and reached.intersection(node.input)):
            regions.add(node.name)
            reached.update(node.output)
    leaving = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.name not in network and node.op_type != "Shape":
            leaving |= {*node.input, *captured(node)}
    return {
        name: regions if node.name in regions else set()
        for node in model.graph.node if node.name in network
        for name in node.output if name in leaving and name in floats
    }  # fmt: skip


def _rounded(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return weights rounded to 7 bits for each output channel."""
    axes = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    step = np.abs(weight).max(axes, keepdims=True).clip(1e-12) / 63
    return (np.round(weight / step) * step).astype(np.float32)
