"""Load a backbone whose attention is drawn, and prepare its input."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from torch import Tensor, nn

from visionattn.backbones import load_official
from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError, ConfigError, require, summary

if TYPE_CHECKING:
    from visionattn.engine.model import LoadedModel
    from visionattn.inference.job import Job

__all__ = ["RunBackbone", "load_backbone", "load_run", "prepare", "run_backbone"]


def load_backbone(name: str, checkpoint: str | None, pretrained: bool, device: str = "cpu") -> nn.Module:
    """Create a timm model in eval mode.

    Args:
        name: model name.
        checkpoint: weights file as published or as saved by this package; None loads none.
        pretrained: load the pretrained weights of timm.
        device: device of the model.

    Raises:
        ConfigError: `name` is unknown, or the device is not available.
        CheckpointError: the checkpoint does not fit the model, or pretrained weights cannot be downloaded.
    """
    if not timm.is_model(name.split(".", 1)[0]):
        raise ConfigError(f"`model` {name!r} is not a timm model; timm.list_models() lists the names")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, without a driver, or not compiled in
        raise ConfigError(f"`device` {device!r} is not available ({summary(error)})") from error
    model = create_model(name, pretrained)
    if checkpoint is not None:
        from visionattn.engine.compat import checkpoint as checkpoints

        weights = checkpoints.state_dict_of(checkpoints.read(checkpoint))
        head = weights.get(f"{(model.pretrained_cfg or {}).get('classifier')}.weight")
        if head is not None and len(head) != model.num_classes:  # trained on other classes
            model.reset_classifier(len(head))
        try:
            model.load_state_dict(weights)
        except RuntimeError:
            try:
                load_official(model, weights)
            except (TypeError, ValueError, KeyError) as error:
                raise CheckpointError(f"{checkpoint}: does not fit {name} ({error})") from error
    return model.to(device).eval()


class RunBackbone(nn.Module):
    """The backbone of a trained detector or segmentor, with its feature maps flattened to one vector per image."""

    num_classes = 0

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.num_prefix_tokens = next(
            (m.num_prefix_tokens for m in backbone.modules() if hasattr(m, "num_prefix_tokens")), 0
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of an image ``[B, 3, H, W]`` as ``[B, N]``."""
        found = self.backbone(image)
        return torch.cat([level.flatten(1) for level in (found if isinstance(found, (tuple, list)) else (found,))], 1)


def load_run(
    config: Path, checkpoint: Path, image: np.ndarray, size: int | None, device: str = "cpu"
) -> tuple[RunBackbone, Tensor]:
    """Load the backbone of a trained model and prepare an image as its test pipeline does.

    Args:
        config: config file.
        checkpoint: weights of its model.
        image: BGR uint8 ``[H, W, 3]``.
        size: shorter side of the input in pixels; None is the size that the model is tested at.
        device: device of the model.

    Returns:
        The backbone and its input ``[1, 3, h, w]``.

    Raises:
        ConfigError: the model has no backbone that takes images.
        CheckpointError: the checkpoint does not fit the model.
    """
    from visionattn.engine.model import load_model
    from visionattn.inference.job import job_of

    loaded = load_model(config, checkpoint, device)
    return run_backbone(loaded, job_of(type(loaded.model), loaded.cfg), image, size, str(config))


def run_backbone(
    loaded: "LoadedModel", job: "type[Job]", image: np.ndarray, size: int | None = None, name: str = "the model"
) -> tuple[RunBackbone, Tensor]:
    """Return the backbone of a loaded model, and an image prepared as its test pipeline does.

    Args:
        loaded: the model.
        job: its job.
        image: BGR uint8 ``[H, W, 3]``.
        size: shorter side of the input in pixels; None is the size that the model is tested at.
        name: start of the message of the error.

    Returns:
        The backbone and its input ``[1, 3, h, w]``.

    Raises:
        ConfigError: the model has no backbone that takes images.
    """
    from visionattn.inference.image_job import ImageJob

    backbone = getattr(loaded.model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not issubclass(job, ImageJob):
        raise ConfigError(f"{name}: {type(loaded.model).__name__} has no `backbone` that takes images")
    tensor = loaded.image_tensor(image)
    if size is not None:
        tensor = loaded.image_tensor(image, size / min(tensor.shape[2:]))
    return RunBackbone(backbone), tensor


def prepare(image: np.ndarray, model: nn.Module, size: int | None) -> Tensor:
    """Convert an image to the input of a timm model.

    Models with a fixed input size get the image resized to that size; for others the aspect ratio is kept and the sides
    are rounded to multiples of 32.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        model: timm model.
        size: shorter side of the input in pixels; None is the default of the model.

    Returns:
        The normalized input, float32 ``[1, 3, h, w]``.
    """
    cv2 = require("cv2")
    cfg = model.pretrained_cfg or {}
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    if not (cfg.get("fixed_input_size") or hasattr(model, "pos_embed")):
        scale = (size or min(height, width)) / min(image.shape[:2])
        height, width = (max(32, round(side * scale / 32) * 32) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    values = torch.from_numpy(resized[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(cfg.get(key) or default).view(3, 1, 1) for key, default in
                 (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))))  # fmt: skip
    return ((values - mean) / std)[None]
