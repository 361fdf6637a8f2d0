"""A dump of the batch and the weights at which a run met NaN or infinity, and its replay away from run and data."""

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
from visionattn.errors import CheckpointError, ConfigError, VisionattnError

__all__ = ["FORMAT", "Replay", "decode", "encode", "replay", "write_dump"]

FORMAT = "visionattn-replay-1"
AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
KIND = "~kind"
"""Marks a dict in a dump that stands for an object. No other class than those of `_classes` is ever made from one."""


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
    """A batch as tensors, numbers, strings, lists, tuples and dicts.

    Raises:
        CheckpointError: it holds something else than data samples of OpenMMLab, boxes, masks and these.
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
    """What `encode` made a plain value of.

    Raises:
        CheckpointError: a kind that is not known, or one that is not as `encode` makes it.
    """
    try:
        return _decode(value)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError, RuntimeError) as error:
        raise CheckpointError(f"the dump's batch is malformed ({type(error).__name__}: {_short(error)})") from error


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
        raise CheckpointError(f"the dump holds a {name!r}, which is not known here")
    if name == "HorizontalBoxes":
        return kind(value["tensor"])
    if name in ("BitmapMasks", "PolygonMasks"):
        return kind(_decode(value["masks"]), value["height"], value["width"])
    element = kind(metainfo=_decode(value["meta"]))
    for key, item in value["data"].items():
        if callable(getattr(kind, key, None)):
            raise CheckpointError(f"the dump's {name} has a field {key!r}, which is a method")
        setattr(element, key, _decode(item))
    return element


def write_dump(path: Path, model: nn.Module, batch: Any, facts: Mapping[str, Any]) -> bool:
    """Write weights, batch and facts (``iteration``, ``rank``, ``seed``, ``what``, ``autocast``, ...) as plain values.

    Returns:
        Whether the batch is in it; a batch of classes unknown to `encode` is left out.
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
    """What a replay found.

    Attributes:
        what: ``"loss"`` or ``"gradient"``, as the run had it.
        iteration: of the run, from 1.
        images: files of the batch.
        losses: each term, a number.
        modules: names of the modules whose output was not finite though their inputs were, first one first.
        parameters: names of those whose gradient was not finite.
    """

    what: str
    iteration: int
    images: list[str]
    losses: dict[str, float]
    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether NaN or infinity came up again."""
        return not all(np.isfinite(v) for v in self.losses.values()) or bool(self.parameters)


def replay(path: str | Path, config: Config, device: str | torch.device = "cpu") -> Replay:
    """Run the iteration of a dump again, up to its gradients, and look where NaN or infinity first comes up.

    Args:
        path: the dump, ``nonfinite_iter_N_rank_R.pth``.
        config: that of its run.
        device: where to run; a GPU's rounding is not a CPU's, so the same device tells most.

    Raises:
        CheckpointError: the dump cannot be read, holds no batch, or does not fit the config.
        ConfigError: the config is wrong.
    """
    dump = checkpoints.read(path)
    if dump.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no dump of a stopped run (nonfinite_iter_*.pth)")
    try:
        seed, iteration, rank = (int(dump[key]) for key in ("seed", "iteration", "rank"))
        if min(seed, rank) < 0 or iteration < 1 or max(seed, iteration, rank) >= 2**32:
            raise ValueError(f"seed {seed}, iteration {iteration}, rank {rank}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: its seed, iteration or rank is missing or none ({_short(error)})") from error
    if dump.get("batch") is None:
        raise CheckpointError(f"{path}: holds no batch, as it was of classes that cannot be saved safely")
    name, device = str(config.filename or "the config"), torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: PyTorch sees no CUDA device here; use cpu")
    from visionattn.engine.model import drop_initialisation

    drop_initialisation(config["model"])
    with quiet(), building(name), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine")):
        model = revert_sync_batchnorm(MODELS.build(config["model"])).to(device).train()
    checkpoints.fit(model, dump, path)
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
    except Exception as error:  # what the run's model took, this one does not: other data or another model
        raise CheckpointError(
            f"{path}: its batch does not go through the config's model ({type(error).__name__}: {_short(error)})"
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
