"""Pose-aware action recognition for mmengine: model, backbone and data preprocessor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor

from visionattn.backbones import load_official
from visionattn.backbones.timesformer import TimeSformer
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.action import mmlab_data, mmlab_metric  # noqa: F401  (registered with this module)
from visionattn.heads.action.heads import joint_loss

__all__ = ["ClipPreprocessor", "PoseRecognizer", "VideoTransformer"]


@MODELS.register_module()
class VideoTransformer(BaseModule):
    """A `visionattn.backbones.timesformer.TimeSformer` created by its timm model name.

    Args:
        model_name: timm model name, such as ``"paab_timesformer_base_patch16_224"``.
        pretrained: checkpoint file of a TimeSformer, of a pose-aware variant, or of an image ViT.
        init_cfg: see ``mmengine.model.BaseModule``.
        **kwargs: passed to ``timm.create_model``, such as ``num_frames`` or ``paab``.

    Raises:
        ConfigError: if the model is not a TimeSformer, or an argument is invalid.
        CheckpointError: if the checkpoint cannot be loaded safely, or does not match.
    """

    open_arguments = True

    def __init__(
        self, model_name: str, pretrained: str | None = None, init_cfg: dict | list | None = None, **kwargs: Any
    ) -> None:
        super().__init__(init_cfg)
        known = timm.list_models(module="timesformer")
        if model_name not in known:
            raise ConfigError(f"backbone: `model_name` must be one of {', '.join(known)}, got {model_name!r}")
        try:
            self.net: TimeSformer = timm.create_model(model_name, num_classes=0, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"backbone {model_name}: {' '.join(str(error).split())}") from error
        if pretrained:
            load_official(self.net, checkpoints.read(Path(pretrained).expanduser()))
        self.num_features = [self.net.num_features]

    def init_weights(self) -> None:
        """Do nothing: timm initialized the weights."""
        self._is_init = True

    def forward(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Compute the classifier input ``[B, C]`` and the joint logits; see `TimeSformer.forward_joints`."""
        return self.net.forward_joints(x, pose)


@MODELS.register_module()
class ClipPreprocessor(BaseDataPreprocessor):
    """Stack and normalize the clips of a batch to ``[B, views, 3, T, H, W]`` on the model's device.

    Args:
        mean: mean of each RGB channel, for values in [0, 1].
        std: standard deviation of each RGB channel.
    """

    def __init__(
        self, mean: Sequence[float] = (0.45, 0.45, 0.45), std: Sequence[float] = (0.225, 0.225, 0.225)
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Process a batch whose ``inputs`` are uint8 ``[views, 3, T, H, W]`` for each sample, all of one shape."""
        data = self.cast_data(data)
        inputs = data["inputs"]
        if not isinstance(inputs, Tensor):
            shapes = {tuple(clip.shape) for clip in inputs}
            if len(shapes) > 1:
                raise ConfigError(f"clips of a batch must have one shape, got {sorted(shapes)}; crop them to one size")
            inputs = torch.stack(list(inputs))
        return {**data, "inputs": (inputs.float() / 255 - self.mean) / self.std}


@MODELS.register_module()
class PoseRecognizer(BaseModel):
    """Video classifier on the class token of a TimeSformer, optionally pose-aware (PAAB, PAAT).

    Data samples have ``gt_label``, ``pose_mask`` (bool ``[views, T, h, w]``, for PAAB) and ``joint_targets`` (bool
    ``[views, T, h, w, J]``, to train PAAT). Prediction sets ``pred_scores`` ``[classes]``, which sum to 1.

    Args:
        backbone: config of a ``visionattn.VideoTransformer``.
        num_classes: number of classes, at least 1.
        joint_weight: weight of the joint loss.
        dropout: dropout probability before the classifier.
        views: reduction over the scores of the views of a video, ``"mean"`` or ``"max"``.
        data_preprocessor: config of the data preprocessor. Defaults to `ClipPreprocessor`.
        init_cfg: see ``mmengine.model.BaseModule``.

    Raises:
        ConfigError: if an argument is invalid.
    """

    job = "action"

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        joint_weight: float = 1.0,
        dropout: float = 0.0,
        views: str = "mean",
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or {"type": "visionattn.ClipPreprocessor"}, init_cfg)
        if num_classes < 1:
            raise ConfigError(f"model: `num_classes` must be at least 1, got {num_classes}")
        if views not in ("mean", "max"):
            raise ConfigError(f"model: `views` must be 'mean' or 'max', got {views!r}")
        self.backbone = MODELS.build(backbone)
        if not isinstance(self.backbone, VideoTransformer):
            raise ConfigError(f"model: `backbone` must be a visionattn.VideoTransformer, got {backbone.get('type')!r}")
        self.head_drop = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(self.backbone.num_features[0], num_classes)
        torch.nn.init.trunc_normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)
        self.joint_weight, self.views = joint_weight, views

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the weights of a published checkpoint to this model's names; return its own weights unchanged."""
        if any(name.startswith("backbone.net.") for name in weights):
            return weights
        found = self.backbone.net.convert_official(weights).state_dict
        return {f"{'' if name.startswith('head.') else 'backbone.net.'}{name}": value for name, value in found.items()}

    def forward(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"):
        """Run the model.

        Args:
            inputs: normalized clips ``[B, views, 3, T, H, W]``, or ``[B, 3, T, H, W]`` for one view.
            data_samples: one data sample for each video, see the class docstring.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            A dict of losses, the data samples with ``pred_scores``, or logits ``[B, views, classes]``.
        """
        if inputs.ndim == 5:
            inputs = inputs[:, None]
        B, V = inputs.shape[:2]
        features, joints = self.backbone(inputs.flatten(0, 1), self._masks(data_samples, V))
        logits = self.head(self.head_drop(features))
        if mode == "loss":
            return self._loss(logits, joints, data_samples, V)
        logits = logits.unflatten(0, (B, V))
        if mode == "predict":
            return self._predict(logits.float().softmax(2), data_samples)
        return logits

    def _masks(self, samples: Sequence[BaseDataElement] | None, views: int) -> Tensor | None:
        if not self.backbone.net.paab or not samples:
            return None
        given = ["pose_mask" in sample for sample in samples]
        if not all(given):
            if any(given) or self.training:
                raise ConfigError("PAAB: samples must have a pose_mask; provide keypoints for all, or set `paab` to ()")
            return None
        device = next(self.parameters()).device
        return torch.stack([sample.pose_mask for sample in samples]).flatten(0, 1).to(device)

    def _loss(
        self, logits: Tensor, joints: list[Tensor], samples: Sequence[BaseDataElement], views: int
    ) -> dict[str, Tensor]:
        labels = torch.stack([torch.as_tensor(sample.gt_label) for sample in samples]).long().to(logits.device)
        labels = labels.repeat_interleave(views)
        losses = {"loss_cls": F.cross_entropy(logits.float(), labels)}
        if joints:
            if any("joint_targets" not in sample for sample in samples):
                raise ConfigError(
                    "PAAT: all samples must have joint_targets, which visionattn.PackClip computes from keypoints"
                )
            targets = torch.stack([sample.joint_targets for sample in samples]).flatten(0, 1).to(logits.device)
            if targets.shape[-1] != joints[0].shape[-1]:
                raise ConfigError(
                    f"PAAT: `num_joints` of the backbone must be the number of joints of the keypoints, "
                    f"{targets.shape[-1]}, got {joints[0].shape[-1]}"
                )
            losses["loss_joint"] = self.joint_weight * joint_loss(joints, targets)
        return losses | {"accuracy": (logits.detach().argmax(1) == labels).float().mean() * 100}

    def _predict(self, scores: Tensor, samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        if not torch.isfinite(scores).all():
            raise CheckpointError("the model outputs NaN or infinity; the checkpoint is from a diverged training run")
        scores = scores.mean(1) if self.views == "mean" else scores.amax(1)
        scores = scores / scores.sum(1, keepdim=True)
        for sample, row in zip(samples, scores.cpu(), strict=True):
            sample.set_field(row, "pred_scores")
        return list(samples)
