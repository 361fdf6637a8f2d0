"""Export models as ``.pt2`` (torch.export) or ``.onnx`` files.

A file is written only if the exported program gives the outputs of the model, for dynamic axes at several sizes.

- ``.pt2`` keeps the attention kernels; `visionattn` must be imported before the file is loaded.
- ``.onnx`` contains standard operators only; neighborhoods are gathered, which takes more memory and time.
"""

import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.errors import BackendError, CheckpointError, ConfigError, MissingDependencyError, summary
from visionattn.io.weights import read

__all__ = ["DYNAMIC", "Export", "Network", "export_model", "network_of_run", "timm_network"]

DYNAMIC = ("batch", "size")
ONNX_PACKAGES = ("onnx", "onnxscript")
OPSET = 18
TIMM_SIZE = 224
LANDSCAPE = 2.5  # larger ratios of the limits of a test image are not those of images
TOLERANCE = 1e-4
"""Maximum difference between the outputs of program and model, relative to the largest absolute output of the model."""


class Network(nn.Module):
    """Module that is exported: maps an image tensor to a tuple of tensors.

    Args:
        model: called with the normalized image.
        mean, std: normalization of each channel; None for models that take normalized images.
        classes: class names by label, for the metadata of the file.
        task: kind of outputs, for the metadata of the file.
        size: (height, width) that the model is used with, in pixels; None if it is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] = (),
        task: str = "features",
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.model, self.classes, self.task, self.size = model, tuple(classes), task, size
        self.normalized = mean is not None
        if mean is not None:
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the model for an image, float32 ``[B, C, H, W]``; nested outputs are flattened."""
        if self.normalized:
            image = (image - self.mean) / self.std
        return tuple(_flat(self.model(image)))


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]


def timm_network(
    name: str, checkpoint: str | Path | None = None, features: bool = False, num_classes: int | None = None
) -> Network:
    """Create the network of a timm model, which returns the logits of the classifier.

    Args:
        name: model name for `timm.create_model`.
        checkpoint: weights file as published by the authors, or as saved by timm or this package; None keeps the random
            initialization.
        features: return the feature maps of all levels in place of logits.
        num_classes: number of classes; None is the default of the model.

    Raises:
        ConfigError: the model name is unknown, or the model does not support `features`.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """
    import timm

    import visionattn  # noqa: F401  registers the backbones
    from visionattn.backbones import load_official

    options = {"features_only": True} if features else {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, **options)
    except (RuntimeError, OSError, ValueError) as error:  # also of names on Hugging Face without a network
        reason = summary(error)
        raise ConfigError(f"`model` {name!r}: {reason}; timm.list_models() lists the names") from error
    if checkpoint is not None:
        state = _read(Path(checkpoint))
        try:
            load_official(model, state)
        except TypeError:  # a model of timm itself, with its parameter names
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(f"{checkpoint}: does not fit {name} ({str(error).splitlines()[-1]})") from error
    cfg = getattr(getattr(model, "model", model), "pretrained_cfg", None) or {}
    size = tuple(cfg.get("input_size") or (3, TIMM_SIZE, TIMM_SIZE))[1:]
    return Network(model.eval(), task="features" if features else "classification", size=size)


def _read(path: Path) -> dict[str, Tensor]:
    loaded = read(path)
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), dict):
            return loaded[key]
    return loaded


def network_of_run(config: Any, checkpoint: str | Path) -> Network:
    """Return the network of a trained model, pixel normalization included; its job defines the outputs.

    Raises:
        ConfigError: models of this job cannot be exported.
    """
    from visionattn.engine.model import load_model
    from visionattn.inference.job import job_of

    loaded = load_model(config, checkpoint)
    job = job_of(type(loaded.model), loaded.cfg)
    module, prepare = job.exported(loaded.model), getattr(loaded.model, "data_preprocessor", None)
    mean, std = (getattr(prepare, name, None) for name in ("mean", "std"))
    numbers = [None if value is None else value.flatten().tolist() for value in (mean, std)]
    size = image_size(loaded.cfg)
    return Network(module.eval(), *numbers, classes=loaded.classes, task=job.name, size=size).eval()


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) to which a config resizes its test images, a multiple of the padding of the model.

    Where the ratio of an image is kept, this is the size of a landscape image that fills the limits; limits that only
    bound the shorter side give a square. None if test images are not resized.
    """
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    height = width = None
    for step in dataset.get("pipeline") or ():
        kind = str(step.get("type", "")).rpartition(".")[2]
        if kind == "Resize" and step.get("scale") is not None:
            scale = step["scale"]
            width, height = (scale, scale) if isinstance(scale, int) else (int(scale[0]), int(scale[1]))
            if step.get("keep_ratio"):
                height, width = min(height, width), max(height, width)
                width = width if width <= LANDSCAPE * height else height
        elif "Crop" in kind and isinstance(step.get("size"), int):
            height = width = step["size"]
    if height is None:
        return None
    prepare = (config.get("model") or {}).get("data_preprocessor") or {}
    divisor = prepare.get("pad_size_divisor") or (prepare.get("test_cfg") or {}).get("size_divisor") or 1
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        path: the file.
        inputs: shape of the traced image.
        outputs: shapes of the outputs for it.
        dynamic: dynamic axes, from `DYNAMIC`.
        difference: maximum difference from the model over all checked shapes, relative to its largest absolute output.
        checked: image shapes for which program and model were compared.
    """

    path: Path
    inputs: tuple[int, ...]
    outputs: list[tuple[int, ...]]
    dynamic: tuple[str, ...]
    difference: float
    checked: list[tuple[int, ...]]


def export_model(
    network: Network,
    path: str | Path,
    size: tuple[int, int],
    batch: int = 1,
    channels: int = 3,
    dynamic: Sequence[str] = (),
) -> Export:
    """Export a network as ``.pt2`` or ``.onnx`` and check the outputs of the program against it.

    Args:
        network: network in eval mode, on the CPU.
        path: output file; its suffix selects the format.
        size: (height, width) of the traced image in pixels.
        batch: batch size of the traced image.
        channels: number of image channels.
        dynamic: dynamic axes: ``"batch"`` for any batch size, ``"size"`` for any height and width.

    Raises:
        ConfigError: an argument is invalid.
        BackendError: the model cannot be exported, or the outputs of the program differ.
        MissingDependencyError: the packages for ONNX are not installed.
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ConfigError(f"`out` must end in .pt2 or .onnx, got {path}")
    if batch < 1:
        raise ConfigError(f"`batch` must be at least 1, got {batch}")
    if min(size) < 1:
        raise ConfigError(f"`size` must be at least 1, got {size[0]}x{size[1]}")
    if unknown := [name for name in dynamic if name not in DYNAMIC]:
        raise ConfigError(f"`dynamic` must be {' or '.join(DYNAMIC)}, got {unknown[0]!r}")
    if path.suffix == ".onnx":
        _require_onnx()
    # torch.export specializes axes of length 1
    shape = (max(batch, 2) if "batch" in dynamic else batch, channels, *size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * (50 if network.normalized else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    write = _write_onnx if path.suffix == ".onnx" else _write_pt2
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the exporters about their internals
            run = write(network, image, partial, tuple(dynamic))
            outputs, difference, checked = _compare(network, run, image, dynamic)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Export(path, shape, outputs, tuple(dynamic), difference, checked)


def _require_onnx() -> None:
    for name in ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{name} is not installed; run: pip install onnx onnxscript onnxruntime"
            ) from error


def _axes(dynamic: Sequence[str]) -> dict[int, Any]:
    free = torch.export.Dim.DYNAMIC
    return ({0: free} if "batch" in dynamic else {}) | ({2: free, 3: free} if "size" in dynamic else {})


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {summary(error)}"


def _trace(network: Network, image: Tensor, dynamic: tuple[str, ...]) -> Any:
    try:
        return torch.export.export(network, (image,), dynamic_shapes=(_axes(dynamic) or None,))
    except Exception as error:  # the exporter raises many kinds
        reason = _reason(error)
        hint = f"; remove {' '.join(dynamic)} from `dynamic`" if dynamic else ""
        raise BackendError(f"torch.export cannot trace {type(network.model).__name__} ({reason}){hint}") from error


def _about(network: Network, image: Tensor, dynamic: tuple[str, ...]) -> dict[str, Any]:
    from visionattn import __version__

    return {
        "visionattn": __version__, "task": network.task, "classes": list(network.classes), "input": list(image.shape),
        "dynamic": list(dynamic), "pixels": "0..255" if network.normalized else "normalized by the caller",
    }  # fmt: skip


def _write_pt2(network: Network, image: Tensor, path: Path, dynamic: tuple[str, ...]) -> Any:
    program = _trace(network, image, dynamic)
    about = {"visionattn.json": json.dumps(_about(network, image, dynamic))}
    try:
        torch.export.save(program, path, extra_files=about)
        return torch.export.load(path).module()
    except Exception as error:
        reason = _reason(error)
        raise BackendError(
            f"the program of {type(network.model).__name__} cannot be written as .pt2 ({reason})"
        ) from error


def _write_onnx(network: Network, image: Tensor, path: Path, dynamic: tuple[str, ...]) -> Any:
    onnx = importlib.import_module("onnx")
    layers = [layer for layer in network.modules() if hasattr(layer, "plain_ops")]
    try:
        for layer in layers:
            layer.plain_ops = True
        program = _trace(network, image, dynamic)
    finally:
        for layer in layers:
            layer.plain_ops = False
    try:
        torch.onnx.export(
            program, (image,), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
            input_names=["image"],
        )  # fmt: skip
    except Exception as error:
        reason = _reason(error)
        raise BackendError(f"the ONNX exporter cannot write {type(network.model).__name__} ({reason})") from error
    model = onnx.load(path)
    for key, value in _about(network, image, dynamic).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Any:
    """Return a function that runs the file with onnxruntime, or with the slower evaluator of onnx if it is missing."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(path))
        return lambda image: [torch.from_numpy(o) for o in evaluator.run(None, {"image": image.numpy()})]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(o) for o in session.run(None, {"image": image.numpy()})]


def _compare(
    network: Network, run: Any, image: Tensor, dynamic: Sequence[str]
) -> tuple[list[tuple[int, ...]], float, list[tuple[int, ...]]]:
    """Return the output shapes, the maximum relative difference, and the compared image shapes."""
    images = [image]
    if "batch" in dynamic:
        images += [image[:1], torch.cat([image, image[:1].flip(3)])]
    if "size" in dynamic:
        images.append(nn.functional.interpolate(image, size=(image.shape[2] + 32, image.shape[3] + 64)))
    shapes, worst = [], 0.0
    for example in images:
        expected = network(example)
        try:
            given = list(run(example))
        except Exception as error:
            reason = _reason(error)
            hint = "; set a larger `size`, at which no feature map is padded" if "size" in dynamic else ""
            raise BackendError(f"the program does not run on {list(example.shape)} ({reason}){hint}") from error
        for one, other in zip(expected, given, strict=True):
            if one.shape != other.shape:
                raise BackendError(f"the program returns shape {list(other.shape)}, the model {list(one.shape)}")
            scale = float(one.abs().max().clamp(min=1e-6))
            worst = max(worst, float((one - other).abs().max()) / scale)
        shapes = shapes or [tuple(tensor.shape) for tensor in expected]
    if not worst <= TOLERANCE:  # NaN fails too
        raise BackendError(
            f"the program differs from the model by {worst:.1e} of the largest output; no file is written"
        )
    return shapes, worst, [tuple(example.shape) for example in images]
