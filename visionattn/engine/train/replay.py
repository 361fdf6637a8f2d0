"""Dump the batch and weights of an iteration with NaN or infinite values, and replay it without the training data."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from torch import Tensor, nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import building, quiet
from visionattn.engine.train.randomness import seed_iteration
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError, ConfigError, VisionattnError

__all__ = ["FORMAT", "Replay", "decode", "encode", "replay", "write_dump"]

FORMAT = "visionattn-replay-1"
AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
KIND = "~kind"
"""Key of dicts in a dump that represent objects. Only classes in `_classes` are instantiated from them."""


def _classes() -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks
    from mmseg.structures import SegDataSample

    known = (
        DetDataSample, SegDataSample, InstanceData, PixelData, LabelData, BaseDataElement, HorizontalBoxes,
        BitmapMasks, PolygonMasks,
    )  # fmt: skip
    return {kind.__name__: kind for kind in known}


def encode(value: Any) -> Any:
    """Convert a batch to tensors, numbers, strings, lists, tuples and dicts.

    Args:
        value: the batch, also with data samples, boxes and masks of OpenMMLab.

    Raises:
        CheckpointError: the batch contains objects of other classes.
    """
    kind = type(value).__name__
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OUS":
        return {KIND: "ndarray", "tensor": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if isinstance(value, BaseDataElement):
        meta = {k: encode(v) for k, v in value.metainfo_items()}
        return {KIND: kind, "meta": meta, "data": {k: encode(v) for k, v in value.items()}}
    if kind == "HorizontalBoxes":
        return {KIND: kind, "tensor": value.tensor}
    if kind in ("BitmapMasks", "PolygonMasks"):
        return {KIND: kind, "masks": encode(value.masks), "height": value.height, "width": value.width}
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(encode(v) for v in value)
    if isinstance(value, list):
        return [encode(v) for v in value]
    return checkpoints.plain(value, "the batch")


def decode(value: Any) -> Any:
    """Restore a batch from the result of `encode`.

    Raises:
        CheckpointError: a class is unknown, or the value is malformed.
    """
    try:
        return _decode(value)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError, RuntimeError) as error:
        raise CheckpointError(
            f"the batch in the dump is malformed ({type(error).__name__}: {_short(error)})"
        ) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _decode(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    if KIND not in value:
        return {k: _decode(v) for k, v in value.items()}
    name = value[KIND]
    if name == "ndarray":
        return value["tensor"].numpy()
    kind = _classes().get(name) if isinstance(name, str) else None
    if kind is None:
        raise CheckpointError(f"the dump contains an object of the unknown class {name!r}")
    if name == "HorizontalBoxes":
        return kind(value["tensor"])
    if name in ("BitmapMasks", "PolygonMasks"):
        return kind(_decode(value["masks"]), value["height"], value["width"])
    element = kind(metainfo=_decode(value["meta"]))
    for key, item in value["data"].items():
        if callable(getattr(kind, key, None)):
            raise CheckpointError(f"the {name} in the dump has a field {key!r}, which is the name of a method")
        setattr(element, key, _decode(item))
    return element


def write_dump(path: Path, model: nn.Module, batch: Any, facts: Mapping[str, Any]) -> bool:
    """Write the weights, the batch and metadata of an iteration to a file.

    Args:
        path: file to write.
        model: the model.
        batch: the batch, which is left out if it contains objects that `encode` does not support.
        facts: ``iteration``, ``rank``, ``seed``, ``what``, ``autocast`` and further metadata.

    Returns:
        True if the batch was written.
    """
    try:
        encoded = encode(batch)
    except CheckpointError:
        encoded = None
    content = {"format": FORMAT, **facts, "batch": encoded, "state_dict": model.state_dict()}
    checkpoints.write(content, path)
    return encoded is not None


@dataclass
class Replay:
    """Result of a replay.

    Attributes:
        what: ``"loss"`` or ``"gradient"``: which one was NaN or infinite in the run.
        iteration: number of the iteration, from 1.
        images: image files of the batch.
        losses: values of the loss terms.
        modules: names of the modules with finite inputs and NaN or infinite outputs, in the order of execution.
        parameters: names of the parameters with NaN or infinite gradients.
    """

    what: str
    iteration: int
    images: list[str]
    losses: dict[str, float]
    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """True if a loss or gradient is NaN or infinite again."""
        return not all(np.isfinite(v) for v in self.losses.values()) or bool(self.parameters)


def replay(path: str | Path, config: Config, device: str | torch.device = "cpu") -> Replay:
    """Repeat the forward and backward pass of a dump and find where NaN or infinite values first occur.

    Args:
        path: the dump, ``nonfinite_iter_N_rank_R.pth``.
        config: config of the run.
        device: device to use. Rounding differs between CPUs and GPUs, so prefer the type of device of the run.

    Raises:
        CheckpointError: the dump cannot be read, contains no batch, or does not match the config.
        ConfigError: the config is invalid, or the device is not available.
    """
    dump = checkpoints.read(path)
    if dump.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a dump of a stopped run (nonfinite_iter_*.pth)")
    try:
        seed, iteration, rank = (int(dump[key]) for key in ("seed", "iteration", "rank"))
        if min(seed, rank) < 0 or iteration < 1 or max(seed, iteration, rank) >= 2**32:
            raise ValueError(f"seed {seed}, iteration {iteration}, rank {rank}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: seed, iteration or rank is missing or invalid ({_short(error)})") from error
    if dump.get("batch") is None:
        raise CheckpointError(f"{path}: contains no batch, because its classes cannot be saved safely")
    name, device = str(config.filename or "the config"), torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"`device` {device} is not available: PyTorch finds no CUDA device")
    from visionattn.engine.config.build import drop_initialisation

    drop_initialisation(config["model"])
    with quiet(), building(name), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine")):
        model = revert_sync_batchnorm(MODELS.build(config["model"])).to(device).train()
    fit(model, dump, path)
    modules: list[str] = []
    hooks = [m.register_forward_hook(_watch(n, modules)) for n, m in model.named_modules() if n]
    seed_iteration(seed, iteration - 1, rank)
    dtype = AUTOCAST.get(str(dump.get("autocast") or "").removeprefix("torch."))
    batch = decode(dump["batch"])
    try:
        with torch.autocast(device.type, dtype) if dtype is not None else nullcontext():
            batch = model.data_preprocessor(batch, True)
            losses = model(**batch, mode="loss") if isinstance(batch, Mapping) else model(*batch, mode="loss")
        total, terms = model.parse_losses(losses)
    except VisionattnError:
        raise
    except Exception as error:  # the config has another model or data format than the run
        raise CheckpointError(
            f"{path}: the model of the config cannot process the batch ({type(error).__name__}: {_short(error)})"
        ) from error
    for hook in hooks:
        hook.remove()
    if total.requires_grad:
        total.backward()
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    values = {k: v.item() for k, v in terms.items()}
    images = dump.get("images")
    images = [str(name) for name in images] if isinstance(images, (list, tuple)) else []
    return Replay(str(dump.get("what", "loss")), iteration, images, values, modules, bad)


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not _finite(output) and _finite(inputs):
            found.append(f"{name} ({type(module).__name__})")

    return hook


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(_finite(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_finite(v) for v in value)
    return True
