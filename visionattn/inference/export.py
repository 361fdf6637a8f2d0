"""Models as files that run without this package's model code: ``.pt2`` (torch.export) and ``.onnx``.

A file is written only after its program gave the numbers of the model itself, at other sizes too where they may vary.

- ``.pt2`` keeps the attention kernels: the process that loads it imports `visionattn` before.
- ``.onnx`` holds standard operators only, in which neighborhoods are gathered; that takes more memory and time.
"""

import importlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.errors import BackendError, CheckpointError, ConfigError, MissingDependencyError
from visionattn.io.weights import read

__all__ = ["DYNAMIC", "Export", "Network", "export_model", "network_of_run", "timm_network"]

DYNAMIC = ("batch", "size")
ONNX_PACKAGES = ("onnx", "onnxscript")
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference between the program and the model, relative to the largest number that the model gives."""


class Network(nn.Module):
    """What is exported: an image tensor in, a tuple of tensors out.

    Args:
        model: called with the image.
        mean, std: taken off and divided by first, one number a channel; None takes the image as it is.
        classes: names by label, for the file's description.
        task: what the outputs are, for the file's description.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] = (),
        task: str = "features",
    ):
        super().__init__()
        self.model, self.classes, self.task = model, tuple(classes), task
        self.normalized = mean is not None
        if mean is not None:
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``[B, C, H, W]`` float32 to the model's outputs, nested lists of them flattened."""
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
    """A timm model: its classifier's logits, or with `features` the maps of its levels.

    Args:
        name: as `timm.create_model` knows it.
        checkpoint: weights, as their authors published them or as timm or this package saved them; None leaves the
            random start.
        features: give the levels' maps.
        num_classes: of the classifier; None takes the model's own.

    Raises:
        ConfigError: timm knows no such model, or it has no levels.
        CheckpointError: the weights cannot be read safely, or do not fit.
    """
    import timm

    import visionattn  # noqa: F401  registers the backbones
    from visionattn.backbones import load_official

    options = {"features_only": True} if features else {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, **options)
    except RuntimeError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}; timm.list_models() gives the names") from error
    if checkpoint is not None:
        state = _read(Path(checkpoint))
        try:
            load_official(model, state)
        except TypeError:  # a model of timm's own, in timm's own names
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(f"{checkpoint}: does not fit {name} ({str(error).splitlines()[-1]})") from error
    return Network(model.eval(), task="features" if features else "classification")


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
    return Network(module.eval(), *numbers, classes=loaded.classes, task=job.name).eval()


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file.
        inputs: shape that was traced.
        outputs: shapes of the outputs for it.
        dynamic: which of `DYNAMIC` may differ from it.
        difference: largest difference from the model, over all shapes tried, relative to its largest number.
        checked: the shapes tried.
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
    """Write a network as ``.pt2`` or ``.onnx``, after checking that the program computes the same.

    Args:
        network: in eval mode, on the CPU.
        path: the file; its suffix says the format.
        size: (height, width) of the image that is traced.
        batch: images that are traced together.
        channels: of the image.
        dynamic: ``"batch"`` for any number of images, ``"size"`` for other heights and widths.

    Raises:
        ConfigError: an argument is out of range.
        BackendError: the model cannot be exported so, or the program computes something else.
        MissingDependencyError: ONNX is asked for and its packages are not installed.
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ConfigError(f"--out {path}: the name must end in .pt2 or .onnx")
    if batch < 1 or min(size) < 1:
        raise ConfigError(f"--batch and --size must be at least 1, got {batch} and {size[0]} x {size[1]}")
    if unknown := [name for name in dynamic if name not in DYNAMIC]:
        raise ConfigError(f"--dynamic takes {' and '.join(DYNAMIC)}, got {unknown[0]}")
    if path.suffix == ".onnx":
        _require_onnx()
    # torch.export takes an axis of length 1 for a constant
    shape = (max(batch, 2) if "batch" in dynamic else batch, channels, *size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * (50 if network.normalized else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    write = _write_onnx if path.suffix == ".onnx" else _write_pt2
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about their own insides
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


def _trace(network: Network, image: Tensor, dynamic: tuple[str, ...]) -> Any:
    try:
        return torch.export.export(network, (image,), dynamic_shapes=(_axes(dynamic) or None,))
    except Exception as error:  # the exporter raises many kinds
        reason = " ".join(str(error).split())[:300]
        hint = f"; leave out --dynamic {' '.join(dynamic)}" if dynamic else ""
        raise BackendError(f"torch.export cannot follow {type(network.model).__name__} ({reason}){hint}") from error


def _about(network: Network, image: Tensor, dynamic: tuple[str, ...]) -> dict[str, Any]:
    from visionattn import __version__

    return {
        "visionattn": __version__, "task": network.task, "classes": list(network.classes), "input": list(image.shape),
        "dynamic": list(dynamic), "pixels": "0..255" if network.normalized else "normalised by the caller",
    }  # fmt: skip


def _write_pt2(network: Network, image: Tensor, path: Path, dynamic: tuple[str, ...]) -> Any:
    program = _trace(network, image, dynamic)
    about = {"visionattn.json": json.dumps(_about(network, image, dynamic))}
    torch.export.save(program, path, extra_files=about)
    return torch.export.load(path).module()


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
        reason = " ".join(str(error).split())[:300]
        raise BackendError(f"the ONNX exporter cannot write {type(network.model).__name__} ({reason})") from error
    model = onnx.load(path)
    for key, value in _about(network, image, dynamic).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Any:
    """The file as a function: by onnxruntime, or where it is not installed by onnx's own slow evaluator."""
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
    """Outputs' shapes, the largest relative difference, and the shapes tried: the traced one and others allowed."""
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
            reason = " ".join(str(error).split())[:300]
            hint = "; trace at a larger --size, where no map is padded" if "size" in dynamic else ""
            raise BackendError(f"the program does not run on {list(example.shape)} ({reason}){hint}") from error
        for one, other in zip(expected, given, strict=True):
            if one.shape != other.shape:
                raise BackendError(f"the program gives {list(other.shape)} where the model gives {list(one.shape)}")
            scale = float(one.abs().max().clamp(min=1e-6))
            worst = max(worst, float((one - other).abs().max()) / scale)
        shapes = shapes or [tuple(tensor.shape) for tensor in expected]
    if not worst <= TOLERANCE:  # NaN fails too
        raise BackendError(
            f"the program differs from the model by {worst:.1e} of its largest number; nothing is written"
        )
    return shapes, worst, [tuple(example.shape) for example in images]
