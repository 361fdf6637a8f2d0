"""Trace a network, write the file, and compare its outputs with those of the network."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.errors import BackendError, ConfigError, summary
from visionattn.inference.export.comparison import difference
from visionattn.inference.export.metadata import metadata
from visionattn.inference.export.network import Network

__all__ = ["DYNAMIC", "SUFFIXES", "Export", "export_model"]

DYNAMIC = ("batch", "size")
SUFFIXES = (".pt2", ".onnx")
TOLERANCE = 1e-3
"""Maximum difference between the outputs of program and model; see `visionattn.inference.export.comparison`.

A `FinalOutputs` may set another one."""


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        path: the file.
        inputs: shape of the traced image.
        outputs: shapes of the outputs for it.
        names: names of the outputs.
        dynamic: dynamic axes, from `DYNAMIC`.
        difference: maximum difference from the model over all checked shapes.
        checked: image shapes for which program and model were compared.
    """

    path: Path
    inputs: tuple[int, ...]
    outputs: list[tuple[int, ...]]
    names: tuple[str, ...]
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
    opset: int | None = None,
) -> Export:
    """Export a network as ``.pt2`` or ``.onnx`` and check the outputs of the program against it.

    Args:
        network: network in eval mode, on the CPU.
        path: output file; its suffix selects the format.
        size: (height, width) of the traced image in pixels.
        batch: batch size of the traced image.
        channels: number of image channels.
        dynamic: dynamic axes: ``"batch"`` for any batch size, ``"size"`` for any height and width, which is implied by
            a network that resizes.
        opset: version of the ONNX operators; None is the lowest that is supported.

    Raises:
        ConfigError: an argument is invalid.
        BackendError: the model cannot be exported, or the outputs of the program differ.
        MissingDependencyError: the packages for ONNX are not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`out` must end in .pt2 or .onnx, got {path}")
    if batch < 1:
        raise ConfigError(f"`batch` must be at least 1, got {batch}")
    if min(size) < 1:
        raise ConfigError(f"`size` must be at least 1, got {size[0]}x{size[1]}")
    if unknown := [name for name in dynamic if name not in DYNAMIC]:
        raise ConfigError(f"`dynamic` must be {' or '.join(DYNAMIC)}, got {unknown[0]!r}")
    if path.suffix == ".onnx":
        from visionattn.inference.export.onnx_file import check_opset, require_onnx

        require_onnx()
        opset = check_opset(opset)
    elif network.resize:
        raise ConfigError(f"`resize` applies to .onnx files only, got {path}")
    elif opset is not None:
        raise ConfigError(f"`opset` applies to .onnx files only, got {opset} for {path}")
    if network.resize:
        dynamic = tuple(name for name in DYNAMIC if name in (*dynamic, "size"))
    # torch.export specializes axes of length 1
    shape = (max(batch, 2) if "batch" in dynamic else batch, channels, *size)
    image = _example(network, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the exporters about their internals
            about = metadata(network, shape, dynamic)
            if path.suffix == ".onnx":
                from visionattn.inference.export.onnx_file import write_onnx

                program = _trace(network, image, tuple(dynamic), with_thresholds=True)
                run = write_onnx(program, network, image, partial, about, opset)
            else:
                program = _trace(network, image, tuple(dynamic), with_thresholds=False)
                run = _write_pt2(program, network, partial, about)
            outputs, worst, checked = _compare(network, run, image, dynamic)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    names = network.names or tuple(f"output_{index}" for index in range(len(outputs)))
    return Export(path, shape, outputs, names, tuple(dynamic), worst, checked)


def _example(network: Network, shape: Sequence[int]) -> Tensor:
    """Return smooth noise: models find more in it than in white noise."""
    generator = torch.Generator().manual_seed(0)
    if not network.normalized:
        return torch.randn(*shape, generator=generator)
    coarse = torch.rand(shape[0], shape[1], shape[2] // 8 + 2, shape[3] // 8 + 2, generator=generator)
    image = nn.functional.interpolate(coarse, size=tuple(shape[2:]), mode="bilinear") * 255
    return (image + 20 * torch.randn(*shape, generator=generator)).clamp(0, 255).round().to(network.dtype)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {summary(error)}"


def _trace(network: Network, image: Tensor, dynamic: tuple[str, ...], with_thresholds: bool) -> Any:
    free = torch.export.Dim.DYNAMIC
    axes = ({0: free} if "batch" in dynamic else {}) | ({2: free, 3: free} if "size" in dynamic else {})
    thresholds = tuple(getattr(network, name) for name in network.thresholds) if with_thresholds else ()
    arguments = (image, *(value.clone() for value in thresholds))
    shapes: dict[str, Any] = {"image": axes or None}
    module: nn.Module = network
    if network.resize:
        module, arguments = _Resized(network), (image, network.resized(image), *arguments[1:])
        shapes["resized"] = axes
    if thresholds:
        shapes["thresholds"] = (None,) * len(thresholds)
    try:
        return torch.export.export(module, arguments, dynamic_shapes=shapes)
    except Exception as error:  # the exporter raises many kinds
        name = type(getattr(network.model, "model", network.model)).__name__
        hint = f"; remove {' '.join(dynamic)} from `dynamic`" if dynamic else ""
        raise BackendError(f"torch.export cannot trace {name} ({_reason(error)}){hint}") from error


class _Resized(nn.Module):
    """A network as a function of the image, of which only the size matters, and the resized image.

    The ONNX program resizes the image before it. Sizes that are computed from other sizes would make tracing slow.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, resized: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
        return self.network.outputs(resized, image.shape[2:], *thresholds)


def _write_pt2(program: Any, network: Network, path: Path, about: dict[str, Any]) -> Any:
    try:
        torch.export.save(program, path, extra_files={"visionattn.json": json.dumps(about)})
        return torch.export.load(path).module()
    except Exception as error:
        name = type(network.model).__name__
        raise BackendError(f"the program of {name} cannot be written as .pt2 ({_reason(error)})") from error


def _compare(
    network: Network, run: Any, image: Tensor, dynamic: Sequence[str]
) -> tuple[list[tuple[int, ...]], float, list[tuple[int, ...]]]:
    """Return the output shapes, the maximum relative difference, and the compared image shapes."""
    images = [image]
    if "batch" in dynamic:
        images += [image[:1], torch.cat([image, image[:1].flip(3)])]
    if "size" in dynamic:
        for height, width in ((32, 64), (-7, 21)):
            size = (max(image.shape[2] + height, image.shape[2] // 2 + 1), image.shape[3] + width)
            images.append(_example(network, (1 if "batch" in dynamic else image.shape[0], image.shape[1], *size)))
    shapes, worst = [], 0.0
    for example in images:
        expected = network(example)
        try:
            given = list(run(example))
        except Exception as error:
            hint = "; set a larger `size`" if "size" in dynamic else ""
            raise BackendError(f"the program does not run on {list(example.shape)} ({_reason(error)}){hint}") from error
        for one, other in zip(expected, given, strict=True):
            if one.shape != other.shape:
                raise BackendError(f"the program returns shape {list(other.shape)}, the model {list(one.shape)}")
        worst = max(worst, difference(network.names, expected, given))
        shapes = shapes or [tuple(tensor.shape) for tensor in expected]
    if not worst <= getattr(network.model, "tolerance", TOLERANCE):  # NaN fails too
        raise BackendError(f"the program differs from the model by {worst:.1e}; no file is written")
    return shapes, worst, [tuple(example.shape) for example in images]
