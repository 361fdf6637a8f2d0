"""Load trained models."""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch import nn

from visionattn.engine.amp import use_amp
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import resizing
from visionattn.engine.config.build import building, drop_initialisation, keep_arguments, quiet
from visionattn.engine.config.class_names import checkpoint_classes
from visionattn.engine.config.custom_data import palette as make_palette
from visionattn.engine.config.custom_data import resolve_classes, resolve_custom_data
from visionattn.engine.config.load import load_config
from visionattn.engine.config.model_checks import class_counts
from visionattn.engine.weights import FitReport, fit
from visionattn.errors import CheckpointError, ConfigError
from visionattn.io.configs import PREFIX
from visionattn.zoo import find_model, model_names

__all__ = ["LoadedModel", "config_for", "find_run", "load_model", "model_class"]


@dataclass
class LoadedModel:
    """A trained model with its config and test pipeline.

    Attributes:
        model: the network, in eval mode, on its device.
        cfg: the whole config.
        classes: class names by label.
        palette: RGB colors by label.
        category_ids: id of each class in the COCO files that the model was trained on, or None.
        device: device of the network.
        meta: iteration, epoch, seed, config name and size of the training images from the checkpoint.
        weights: report of the conversion of the checkpoint's names, or None.
    """

    model: nn.Module
    cfg: Config
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    device: torch.device
    meta: dict[str, Any] = field(default_factory=dict)
    category_ids: tuple[int, ...] | None = None
    weights: FitReport | None = None
    _pipelines: dict[float, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def run(self, samples: Sequence[dict[str, Any]], scale: float = 1.0) -> list[Any]:
        """Run the test pipeline and the network on one batch.

        Args:
            samples: inputs of the pipeline: for images ``img`` (BGR uint8 ``[H, W, 3]``) and ``img_id``.
            scale: factor on the size that the pipeline resizes to; predictions stay in pixels of the input.

        Returns:
            The data samples with their predictions.
        """
        if not samples:
            return []
        pipeline = self._pipeline(scale)
        return list(self.model.test_step(pseudo_collate([pipeline(sample) for sample in samples])))

    def use_amp(self) -> None:
        """Compute in half precision from now on, see `visionattn.engine.amp.use_amp`."""
        use_amp(self.model)

    def image_tensor(self, image: np.ndarray, scale: float = 1.0) -> torch.Tensor:
        """Return an image as input of the network: resized by the test pipeline and normalized, without padding.

        Args:
            image: BGR uint8 ``[H, W, 3]``.
            scale: factor on the size that the pipeline resizes to.

        Returns:
            Tensor ``[1, 3, h, w]`` on the device of the network.
        """
        sample = self._pipeline(scale)({"img": image, "img_id": 0})
        data = self.model.data_preprocessor(pseudo_collate([sample]), training=False)
        height, width = data["data_samples"][0].metainfo["img_shape"][:2]
        return data["inputs"][:, :, :height, :width].contiguous()

    def _pipeline(self, scale: float) -> Any:
        if scale not in self._pipelines:
            with DefaultScope.overwrite_default_scope(self.cfg.get("default_scope", "mmengine")):
                self._pipelines[scale] = _array_pipeline(self.cfg, self.cfg.filename or "the config", scale)
        return self._pipelines[scale]


def config_for(path: str | os.PathLike, checkpoint: str | os.PathLike) -> Config:
    """Read the config of a trained model.

    If its ``custom_data`` block does not list the classes, those in the checkpoint are used, so that the model runs
    without its data. For a checkpoint without class names, those of the package's model with this config are used, if
    there is one; otherwise the data is required.

    Raises:
        ConfigError, DataError: see `load_config`.
        CheckpointError: the checkpoint cannot be read safely.
    """
    config = load_config(path, resolve_data=False)
    block = config.get("custom_data")
    named = block is None or isinstance(block.get("classes"), (list, tuple))
    if not named and (known := checkpoint_classes(checkpoints.read(checkpoint)) or _shipped_classes(str(path))):
        resolve_classes(config, known)
        return config
    resolve_custom_data(config, str(path))
    return config


def _shipped_classes(config: str) -> list[str]:
    """Return the class names of the trained model in the package whose config this is, or an empty list."""
    models = map(find_model, model_names()) if config.startswith(PREFIX) else ()
    return next((checkpoint_classes({"meta": model.meta}) for model in models if model.config == config), [])


def load_model(
    config: Config | str | os.PathLike, checkpoint: str | os.PathLike, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Build the model of a config and load a checkpoint, which must fit the model completely.

    The checkpoint may have the names of its authors, see `visionattn.engine.weights.convert`.

    Raises:
        ConfigError: the config is invalid, or the device is not available.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """
    cfg = deepcopy(config) if isinstance(config, Config) else config_for(config, checkpoint)
    name = cfg.filename or "the config"
    loaded = checkpoints.read(checkpoint)
    keep_arguments(cfg, checkpoints.adopted_arguments(loaded))
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: PyTorch found no CUDA device; use cpu")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # mmdet imports it, and it would query PyPI
    drop_initialisation(cfg["model"])
    with quiet(), building(name), DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        model = revert_sync_batchnorm(MODELS.build(deepcopy(cfg["model"])))  # constructors change their config
        pipeline = _array_pipeline(cfg, name, 1.0)
    report = fit(model, loaded, checkpoint, config=cfg)
    meta = checkpoints.meta_of(loaded)
    classes, colours, note = _classes(cfg, meta)
    if note:
        report = replace(report, settings={**report.settings, "the list of classes": note})
    return LoadedModel(
        model=model.to(device).eval(),
        cfg=cfg,
        classes=classes,
        palette=colours,
        device=device,
        meta={k: meta[k] for k in ("iter", "epoch", "seed", "config_name", "image_size") if k in meta},
        category_ids=_category_ids(meta, len(classes)),
        weights=report,
        _pipelines={1.0: pipeline},
    )


def _array_pipeline(cfg: Config, name: str, scale: float) -> Any:
    """Build the test pipeline of a config for arrays instead of files, without the steps for annotations."""
    from mmcv.transforms import Compose

    resizing.install()
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    steps = cfg.get("test_pipeline")
    dataset = loader["dataset"] if loader else {}
    while isinstance(dataset, Mapping) and "dataset" in dataset and "pipeline" not in dataset:
        dataset = dataset["dataset"]
    steps = dataset.get("pipeline") or steps
    if not steps:
        raise ConfigError(f"{name}: has no test pipeline; set test_dataloader.dataset.pipeline")
    scope = cfg.get("default_scope", "mmdet")
    resized = any(str(step["type"]).rsplit(".", 1)[-1] == "Resize" for step in steps)
    result = []
    for step in deepcopy(list(steps)):
        kind = str(step["type"]).rsplit(".", 1)[-1]
        if kind == "LoadImageFromFile":
            array_loader = f"{'mmseg' if scope == 'mmseg' else 'mmdet'}.LoadImageFromNDArray"
            result.append({"type": array_loader})
            if scale != 1 and not resized:
                result.append({"type": "Resize", "scale_factor": scale, "keep_ratio": True})
        elif kind == "Resize" and scale != 1:
            key = "scale" if step.get("scale") else "scale_factor"
            step[key] = _scaled(step[key], scale)
            result.append(step)
        elif not _reads_annotations(step["type"]):
            result.append(step)
    return Compose([TRANSFORMS.build(step) for step in result])


def _reads_annotations(kind: Any) -> bool:
    """Return True for transforms that are skipped in prediction, because they load or create annotations."""
    from mmcv.transforms import LoadAnnotations

    found = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return found is not None and (issubclass(found, LoadAnnotations) or getattr(found, "reads_annotations", False))


def _scaled(size: Any, scale: float) -> Any:
    if isinstance(size, (list, tuple)):
        return tuple(_scaled(value, scale) for value in size)
    return max(1, round(size * scale)) if isinstance(size, int) else size * scale


def _category_ids(meta: Mapping[str, Any], count: int) -> tuple[int, ...] | None:
    info = meta.get("dataset_meta")
    ids = info.get("category_ids") if isinstance(info, Mapping) else None
    if not isinstance(ids, (list, tuple)) or len(ids) != count or not all(isinstance(i, int) for i in ids):
        return None
    return tuple(ids)


def _classes(cfg: Config, meta: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[int, int, int]], str]:
    """Return class names and colors: those in the checkpoint, else those of the config's dataset.

    Also returns the reason why names in the checkpoint are not used, or an empty string.
    """
    info = meta.get("dataset_meta")
    info = info if isinstance(info, Mapping) else meta
    palette = info.get("palette", info.get("PALETTE"))  # mmcv 1.x
    classes, note = checkpoint_classes({"meta": meta}), ""
    counts = class_counts(cfg["model"])
    if not classes or (counts and len(classes) not in counts):
        own = _dataset_info(cfg)
        names = checkpoint_classes({"meta": {"dataset_meta": own}})
        if classes and len(names) in counts:
            note = f"that of the config, since the file names {len(classes)} classes for a model of {len(names)}"
        if note or not classes:
            classes, palette = names, own.get("palette")
    if not isinstance(palette, (list, tuple)) or len(palette) < len(classes):
        palette = make_palette(len(classes))
    return tuple(classes), [tuple(int(v) for v in colour) for colour in palette], note


def _dataset_info(cfg: Config) -> dict[str, Any]:
    """Return the metainfo of the dataset of a config."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or cfg.get("train_dataloader")
    dataset = loader["dataset"] if loader else {}
    while isinstance(dataset, Mapping) and "dataset" in dataset:
        dataset = dataset["dataset"]
    info = dict(dataset.get("metainfo") or {})
    if not info.get("classes") and dataset.get("type"):
        from visionattn.engine.config.options import find_class

        info = dict(getattr(find_class(dataset["type"]), "METAINFO", {}))
    return info


def model_class(cfg: Config) -> type:
    """Return the class of a config's model.

    Raises:
        ConfigError: the config has no model, or its type is unknown.
    """
    kind = (cfg.get("model") or {}).get("type")
    if kind is None:
        raise ConfigError(f"{cfg.filename or 'the config'}: has no model.type")
    with quiet(), MODELS.switch_scope_and_registry(cfg.get("default_scope", "mmengine")) as registry:
        found = registry.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ConfigError(f"{cfg.filename or 'the config'}: model.type={kind!r} is unknown")
    return found


def find_run(work_dir: str | os.PathLike) -> tuple[Path, Path]:
    """Find the config and the best checkpoint in the work dir of a training run.

    Without a best checkpoint, this is the newest one that can be read.

    Returns:
        ``(config file, checkpoint file)``.

    Raises:
        ConfigError: the folder or the config does not exist.
        CheckpointError: there is no readable checkpoint.
    """
    folder = Path(work_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such work dir; train first, or give the folder of a run")
    configs = sorted(folder.glob("*.py"), key=lambda p: p.stat().st_mtime_ns)
    if not configs:
        raise ConfigError(f"{folder}: contains no config (*.py), so it is not the work dir of a run")
    reasons = []
    for best in sorted(folder.glob("best_*.pth"), key=lambda p: -p.stat().st_mtime_ns):
        try:
            checkpoints.read(best)
            return configs[-1], best
        except CheckpointError as error:
            reasons.append(str(error))
    last, more = checkpoints.newest(folder)
    if last is None:
        reasons += more
        raise CheckpointError(reasons[0] if reasons else f"{folder}: contains no checkpoint")
    return configs[-1], last
