"""Write ``.onnx`` files of standard operators."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.errors import BackendError, ConfigError, MissingDependencyError, summary
from visionattn.inference.export.network import Network
from visionattn.inference.export.resizing import prepend_steps

__all__ = ["check_opset", "require_onnx", "write_onnx"]

PACKAGES = ("onnx", "onnxscript")
MINIMUM_OPSET = 18
"""First opset with all operators in use: RoiAlign with half-pixel coordinates, and Pad of given axes."""


def require_onnx() -> None:
    """Check that the packages for writing ONNX are installed.

    Raises:
        MissingDependencyError: one of them is missing.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{name} is not installed; run: pip install onnx onnxscript onnxruntime"
            ) from error


def check_opset(opset: int | None) -> int:
    """Return the opset, or the default for None.

    Raises:
        ConfigError: it is not supported.
    """
    highest = importlib.import_module("onnx").defs.onnx_opset_version()
    if opset is not None and not MINIMUM_OPSET <= opset <= highest:
        raise ConfigError(
            f"`opset` must be in [{MINIMUM_OPSET}, {highest}], got {opset}; models need operators of "
            f"opset {MINIMUM_OPSET}"
        )
    return opset or MINIMUM_OPSET


def write_onnx(program: Any, network: Network, image: Tensor, path: Path, about: dict[str, Any], opset: int) -> Any:
    """Write a traced network, and return a function from images to its outputs.

    The thresholds become inputs with default values: ONNX Runtime lists them as overridable initializers.

    Raises:
        BackendError: an operator has no ONNX implementation.
    """
    onnx = importlib.import_module("onnx")
    from visionattn.inference.export.translations import translations

    images = {"image": image} | ({"resized": network.resized(image)} if network.resize else {})
    thresholds = tuple(getattr(network, name) for name in network.thresholds)
    try:
        written = torch.onnx.export(
            program, (*images.values(), *thresholds), dynamo=True, opset_version=opset, external_data=False,
            verbose=False, input_names=[*images, *network.thresholds], output_names=list(network.names) or None,
            custom_translation_table=translations(), optimize=False,
        )  # fmt: skip
        model = _simplified(written.model_proto)
        if network.resize:
            prepend_steps(model, network.resize)
    except Exception as error:
        name = type(getattr(network.model, "model", network.model)).__name__
        raise BackendError(f"the ONNX exporter cannot write {name} ({_cause(error, program)})") from error
    _name_axes(model, about["dynamic"])
    for name, value in network.thresholds.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(torch.tensor(value).numpy(), name))
    for key, value in (about | {"opset": opset}).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign or model.functions:
        raise BackendError(f"the program needs operators outside of ONNX: {', '.join(sorted(foreign)) or 'functions'}")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise BackendError(f"the program is not valid ONNX ({_reason(error)})") from error
    onnx.save(model, path)
    return runner(path)


def _cause(error: Exception, program: Any) -> str:
    """Return the reason that the exporter gives: an operator, with the layer that contains it, or its error."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    found = re.search(r"No ONNX function found for <OpOverload\(op='(?:\w+\.)?(\w+)'", str(error))
    if not found:
        return _reason(error)
    stacks = (node.meta.get("nn_module_stack") for node in program.graph.nodes if found[1] in str(node.target))
    path, kind = next((list(stack.values())[-1] for stack in stacks if stack), ("", ""))
    layer = f"{path.removeprefix('model.')} ({str(kind).rpartition('.')[2]})" if path else "a layer"
    return f"{layer} uses the operator {found[1]}, which has no ONNX implementation"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {summary(error)}"


def _simplified(model: Any) -> Any:
    """Inline functions, and remove what is computed twice or not used.

    The optimizer of the exporter takes minutes for large graphs; the runtimes apply the same rules when they load one.
    """
    ir, passes = importlib.import_module("onnx_ir"), importlib.import_module("onnx_ir.passes.common")
    if model.functions:
        model = importlib.import_module("onnx.inliner").inline_local_functions(model)
    graph = ir.from_proto(model)
    for step in (
        passes.IdentityEliminationPass(), passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(), passes.ClearMetadataAndDocStringPass(), passes.NameFixPass(),
    ):  # fmt: skip
        step(graph)
    return ir.to_proto(graph)


def _name_axes(model: Any, dynamic: list[str]) -> None:
    """Name the dynamic axes of the image batch, height and width, and those of the outputs that equal them."""
    image = next(value for value in model.graph.input if value.name == "image")
    names = {}
    for dim, name in zip(image.type.tensor_type.shape.dim, ("batch", "channels", "height", "width"), strict=True):
        if dim.dim_param:
            names[dim.dim_param] = name
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    del model.graph.value_info[:]  # it refers to the old names


def runner(path: Path) -> Any:
    """Return a function that runs the file with onnxruntime, or with the slower evaluator of onnx if it is missing."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(path))
        return lambda image: [torch.from_numpy(o) for o in evaluator.run(None, {"image": image.numpy()})]
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # warnings about initializers are for developers
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(o) for o in session.run(None, {"image": image.numpy()})]
