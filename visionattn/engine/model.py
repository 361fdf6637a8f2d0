"""Trained models for other code: load one, give it images, get plain NumPy results."""

import os
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch import nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import building, quiet
from visionattn.engine.config.custom_data import palette as make_palette
from visionattn.engine.config.custom_data import resolve_classes, resolve_custom_data
from visionattn.engine.config.load import load_config
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.localization.metrics_sat import normalize_map

__all__ = ["LoadedModel", "config_for", "drop_initialisation", "find_run", "load_model"]


@dataclass
class LoadedModel:
    """A trained model with what it takes to use it.

    Attributes:
        model: in eval mode, on its device.
        cfg: the whole config.
        classes: names by label.
        task: ``"detection"``, ``"instance"``, ``"semantic"``, ``"panoptic"``, ``"localization"``,
            ``"forgery"``, ``"action"`` or ``"points"``.
        palette: RGB by label.
        device: where the model is.
        things: of a panoptic model, how many classes are things; their labels come first. None of other models.
        meta: of the checkpoint: iteration, epoch, seed, config name.
    """

    model: nn.Module
    cfg: Config
    classes: tuple[str, ...]
    task: str
    palette: list[tuple[int, int, int]]
    device: torch.device
    things: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    _pipelines: dict[float, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """Probability above which a forgery model marks a pixel."""
        return float(getattr(self.model, "threshold", 0.5))

    @torch.inference_mode()
    def predict(
        self, images: Sequence[np.ndarray], *, scale: float = 1.0, logits: bool = False
    ) -> list[dict[str, Any]]:
        """Run the config's test pipeline and the model on images, in one batch.

        Args:
            images: ``[H, W, 3]`` uint8 arrays in BGR order, of any sizes.
            scale: makes the size that the pipeline resizes to larger or smaller; results stay in the images' pixels.
            logits: also give ``logits``, float32 ``[C, H, W]``, of a model that classifies pixels; two channels
                where it has one for two classes.

        Returns:
            One dict for each image, in its own pixels: ``boxes`` ``[N, 4]`` float32 (left, top, right, bottom),
            ``scores`` ``[N]`` float32, ``labels`` ``[N]`` int64, ``masks`` ``[N, H, W]`` bool or None,
            ``semantic`` ``[H, W]`` int64 of labels or None, of a localization model ``heatmap``, float32 ``[H, W]``
            in 0..1, and ``image_scores``, float32 ``[classes]``, and ``timing``, seconds for this image:
            ``preprocess``, ``model`` and ``total``. In a panoptic result the instances are the segments, with a
            score of 1, and the label ``len(classes)`` in ``semantic`` means no class.
            A forgery model also gives ``heatmap``, the probability of each pixel, and ``image_scores``.
        """
        if not images:
            return []
        start = time.perf_counter()
        pipeline = self._pipeline(scale)
        samples = [pipeline({"img": image, "img_id": i}) for i, image in enumerate(images)]
        prepared = time.perf_counter()
        outputs = self.model.test_step(pseudo_collate(samples))
        results = [self._result(output, image.shape[:2]) for output, image in zip(outputs, images, strict=True)]
        end = time.perf_counter()
        count = len(images)
        if logits:
            for result, output in zip(results, outputs, strict=True):
                result["logits"] = self._logits(output)
        for result in results:
            result["timing"] = {
                "preprocess": (prepared - start) / count,
                "model": (end - prepared) / count,
                "total": (end - start) / count,
            }
        return results

    @torch.inference_mode()
    def predict_video(self, video: str | os.PathLike, points: str | os.PathLike | None = None) -> dict[str, Any]:
        """Run the config's test pipeline and the model of an action config on a video.

        Args:
            video: the file.
            points: its key points, for models with pose-aware attention; without them those blocks are passed over.

        Returns:
            ``class_scores``, float32 ``[classes]``; of the first view ``frames``, uint8 RGB ``[T, H, W, 3]`` as the
            model sees them, and ``mask``, bool ``[T, h, w]`` over patches of ``patch_size``, or None; of all views
            ``frame_indices``; and ``timing``, seconds for ``preprocess``, ``model`` and ``total``.

        Raises:
            ConfigError: the model is not of action recognition.
            DataError: a file cannot be read.
        """
        if self.task != "action":
            raise ConfigError(f"a {self.task} model does not classify videos")
        start = time.perf_counter()
        given = None if points is None else str(points)
        sample = self._pipeline(1.0)({"video_path": str(video), "points_path": given})
        prepared = time.perf_counter()
        output = self.model.test_step(pseudo_collate([sample]))[0]
        end = time.perf_counter()
        patch = self.model.backbone.net.patch_embed.patch_size
        return {
            "class_scores": _array(output.pred_scores, np.float32),
            "frames": sample["inputs"][0].permute(1, 2, 3, 0).numpy(),
            "mask": _array(output.pose_mask[0], bool) if "pose_mask" in output else None,
            "patch_size": int(patch[0]),
            "frame_indices": output.metainfo["frame_indices"],
            "timing": {"preprocess": prepared - start, "model": end - prepared, "total": end - start},
        }

    def _pipeline(self, scale: float) -> Any:
        if scale not in self._pipelines:
            with DefaultScope.overwrite_default_scope(self.cfg.get("default_scope", "mmengine")):
                self._pipelines[scale] = _array_pipeline(self.cfg, self.cfg.filename or "the config", scale)
        return self._pipelines[scale]

    def _logits(self, output: Any) -> np.ndarray:
        if "seg_logits" not in output:
            raise ConfigError(f"a {self.task} model gives no logits of pixels; use it without tiles and --tta")
        values = output.seg_logits.data.float()
        if values.shape[0] == 1:  # mmseg gives the sigmoid, and compares it with the head's threshold
            threshold = torch.logit(torch.tensor(float(self.model.decode_head.threshold)))
            values = torch.logit(values, eps=1e-6)
            values = torch.cat([torch.full_like(values, float(threshold)), values])
        return _array(values, np.float32)

    def _result(self, output: Any, size: tuple[int, int]) -> dict[str, Any]:
        result: dict[str, Any] = {
            "boxes": np.zeros((0, 4), np.float32),
            "scores": np.zeros(0, np.float32),
            "labels": np.zeros(0, np.int64),
            "masks": None,
            "semantic": None,
        }
        if "pred_panoptic_seg" in output:
            result.update(_segments(output.pred_panoptic_seg.sem_seg[0].cpu().numpy(), len(self.classes)))
        elif "pred_instances" in output:
            found = output.pred_instances
            result["boxes"] = _array(found.bboxes, np.float32).reshape(-1, 4)
            result["scores"] = _array(found.scores, np.float32)
            result["labels"] = _array(found.labels, np.int64)
            if "masks" in found:
                result["masks"] = _array(found.masks, bool).reshape(-1, *size)
        elif self.task == "instance":
            result["masks"] = np.zeros((0, *size), bool)
        if "pred_map" in output:
            result["heatmap"] = normalize_map(_array(output.pred_map, np.float32), size)
            result["image_scores"] = _array(output.pred_scores, np.float32)
        if "pred_sem_seg" in output and result["semantic"] is None:
            data = output.pred_sem_seg
            result["semantic"] = _array(data.data if "data" in data else data.sem_seg, np.int64)[0]
        if "forgery_prob" in output:
            score = float(output.forgery_score)
            result["heatmap"] = _array(output.forgery_prob.data, np.float32)[0]
            result["image_scores"] = np.array([1 - score, score], np.float32)
        return result


def _array(value: Any, dtype: Any) -> np.ndarray:
    value = getattr(value, "tensor", value)  # box types of mmdet
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value).astype(dtype, copy=False)


def _segments(segments: np.ndarray, count: int) -> dict[str, Any]:
    """mmdet codes a panoptic segment as label + 1000 * number."""
    masks, labels, boxes = [], [], []
    for code in np.unique(segments):
        label = int(code) % 1000
        if label >= count:
            continue
        mask = segments == code
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        masks.append(mask)
        labels.append(label)
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "scores": np.ones(len(labels), np.float32),
        "labels": np.asarray(labels, np.int64),
        "masks": np.asarray(masks, bool).reshape(-1, *segments.shape),
        "semantic": np.minimum(segments % 1000, count).astype(np.int64),
    }


def config_for(path: str | os.PathLike, checkpoint: str | os.PathLike) -> Config:
    """Read the config of a trained model. Classes that it leaves to ``custom_data`` are those of the checkpoint.

    So a model runs where its data is not. A checkpoint that does not tell its classes needs the data.

    Raises:
        ConfigError, DataError: see `load_config`.
        CheckpointError: the checkpoint cannot be read safely.
    """
    config = load_config(path, resolve_data=False)
    block = config.get("custom_data")
    if block is not None and not isinstance(block.get("classes"), (list, tuple)):
        meta = checkpoints.read(checkpoint).get("meta")
        known = (meta.get("dataset_meta") or {}).get("classes") if isinstance(meta, Mapping) else None
        if known and not isinstance(known, str):
            resolve_classes(config, [str(name) for name in known])
            return config
    resolve_custom_data(config, str(path))
    return config


def load_model(
    config: Config | str | os.PathLike, checkpoint: str | os.PathLike, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Build the model of a config and load a checkpoint into it, every tensor of it.

    Raises:
        ConfigError: the config is wrong, or names a device that is not there.
        CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
    """
    cfg = deepcopy(config) if isinstance(config, Config) else config_for(config, checkpoint)
    name = cfg.filename or "the config"
    loaded = checkpoints.read(checkpoint)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: PyTorch sees no CUDA device here; use cpu")
    drop_initialisation(cfg["model"])
    with quiet(), building(name), DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        model = revert_sync_batchnorm(MODELS.build(cfg["model"]))
        pipeline = _array_pipeline(cfg, name, 1.0)
    checkpoints.fit(model, loaded, checkpoint)
    meta = loaded.get("meta") if isinstance(loaded.get("meta"), Mapping) else {}
    classes, colours = _classes(cfg, meta)
    return LoadedModel(
        model=model.to(device).eval(),
        cfg=cfg,
        classes=classes,
        task=cfg.get("task") or _task(model),
        palette=colours,
        device=device,
        things=getattr(getattr(model, "panoptic_fusion_head", None), "num_things_classes", None),
        meta={k: meta[k] for k in ("iter", "epoch", "seed", "config_name") if k in meta},
        _pipelines={1.0: pipeline},
    )


def drop_initialisation(part: Any) -> None:
    """All weights come from the checkpoint, so no part needs to fetch others first."""
    if isinstance(part, dict):
        part.pop("init_cfg", None)
        if "pretrained" in part:
            part["pretrained"] = None
        for value in part.values():
            drop_initialisation(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            drop_initialisation(value)


def _array_pipeline(cfg: Config, name: str, scale: float) -> Any:
    """The test pipeline of a config, taking arrays in place of files and needing no annotations."""
    from mmcv.transforms import Compose

    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    steps = cfg.get("test_pipeline")
    dataset = loader["dataset"] if loader else {}
    while isinstance(dataset, Mapping) and "dataset" in dataset and "pipeline" not in dataset:
        dataset = dataset["dataset"]
    steps = dataset.get("pipeline") or steps
    if not steps:
        raise ConfigError(f"{name}: has no test pipeline; it needs test_dataloader.dataset.pipeline")
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
        elif kind not in ("LoadAnnotations", "LoadPanopticAnnotations", "LoadForgeryMask", "ForgeImage"):
            result.append(step)
    return Compose([TRANSFORMS.build(step) for step in result])


def _scaled(size: Any, scale: float) -> Any:
    if isinstance(size, (list, tuple)):
        return tuple(_scaled(value, scale) for value in size)
    return max(1, round(size * scale)) if isinstance(size, int) else size * scale


def _classes(cfg: Config, meta: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[int, int, int]]]:
    """Class names and colours: as the checkpoint was trained, else as the config's dataset has them."""
    info = dict(meta.get("dataset_meta") or {})
    if not info.get("classes"):
        loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or cfg.get("train_dataloader")
        dataset = loader["dataset"] if loader else {}
        while isinstance(dataset, Mapping) and "dataset" in dataset:
            dataset = dataset["dataset"]
        info = dict(dataset.get("metainfo") or {})
        if not info.get("classes") and dataset.get("type"):
            from visionattn.engine.config.options import find_class

            info = dict(getattr(find_class(dataset["type"]), "METAINFO", {}))
    classes = info.get("classes") or ()
    classes = (classes,) if isinstance(classes, str) else tuple(str(c) for c in classes)
    colours = info.get("palette")
    if not isinstance(colours, (list, tuple)) or len(colours) < len(classes):
        colours = make_palette(len(classes))
    return classes, [tuple(int(v) for v in colour) for colour in colours]


def _task(model: nn.Module) -> str:
    names = {base.__name__ for base in type(model).__mro__}
    if "ForgeryModel" in names:
        return "forgery"
    if "PoseRecognizer" in names:
        return "action"
    if "BEVDetector" in names:
        return "points"
    if "BaseSegmentor" in names:
        return "semantic"
    if "Localizer" in names:
        return "localization"
    options = getattr(model, "test_cfg", None) or {}
    if "TwoStagePanopticSegmentor" in names or ("MaskFormer" in names and options.get("panoptic_on")):
        return "panoptic"
    if "MaskFormer" in names:
        return "instance" if options.get("instance_on", True) else "semantic"
    head = type(getattr(model, "bbox_head", None)).__name__
    if "SingleStageInstanceSegmentor" in names or getattr(model, "with_mask", False) or "Ins" in head:
        return "instance"
    return "detection"


def find_run(work_dir: str | os.PathLike) -> tuple[Path, Path]:
    """The config and the best checkpoint that a training run left in its work dir.

    The best one by validation, or without one the newest that reads whole.

    Returns:
        ``(config file, checkpoint file)``.

    Raises:
        ConfigError: the folder or its config is missing.
        CheckpointError: it has no checkpoint that can be read.
    """
    folder = Path(work_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such work dir; train first, or name the folder of a run")
    configs = sorted(folder.glob("*.py"), key=lambda p: p.stat().st_mtime_ns)
    if not configs:
        raise ConfigError(f"{folder}: has no config (*.py); it is not the work dir of a run")
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
        raise CheckpointError(reasons[0] if reasons else f"{folder}: has no checkpoint yet")
    return configs[-1], last
