"""Action recognition with pose for mmengine's runner: the model, its backbone, and what prepares clips for it."""

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
    """A `visionattn.backbones.timesformer.TimeSformer` by its name in timm.

    Args:
        model_name: such as ``"paab_timesformer_base_patch16_224"``.
        pretrained: a checkpoint file of TimeSformer, of its pose-aware kin, or of an image ViT to start from.
        init_cfg: mmengine's initialisation.
        **kwargs: to ``timm.create_model``, such as ``num_frames`` or ``paab``.

    Raises:
        ConfigError: the name is not one of a TimeSformer, or an argument does not do.
        CheckpointError: the checkpoint cannot be read safely, or does not fit.
    """

    open_arguments = True

    def __init__(
        self, model_name: str, pretrained: str | None = None, init_cfg: dict | list | None = None, **kwargs: Any
    ) -> None:
        super().__init__(init_cfg)
        known = timm.list_models(module="timesformer")
        if model_name not in known:
            raise ConfigError(f"backbone model_name={model_name!r} must be one of {', '.join(known)}")
        try:
            self.net: TimeSformer = timm.create_model(model_name, num_classes=0, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"backbone {model_name}: {' '.join(str(error).split())}") from error
        if pretrained:
            load_official(self.net, checkpoints.read(Path(pretrained).expanduser()))
        self.num_features = [self.net.num_features]

    def init_weights(self) -> None:
        """The model initialised its weights already."""
        self._is_init = True

    def forward(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """What enters a classifier, ``[B, C]``, and the joint heads' logits; see `TimeSformer.forward_joints`."""
        return self.net.forward_joints(x, pose)


@MODELS.register_module()
class ClipPreprocessor(BaseDataPreprocessor):
    """Clips of a batch as one normed tensor ``[B, views, 3, T, H, W]`` on the model's device.

    Args:
        mean: of each channel (RGB), of values in 0..1.
        std: likewise.
    """

    def __init__(
        self, mean: Sequence[float] = (0.45, 0.45, 0.45), std: Sequence[float] = (0.225, 0.225, 0.225)
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """``inputs``: uint8 ``[views, 3, T, H, W]`` of each sample; all must be of one shape."""
        data = self.cast_data(data)
        inputs = data["inputs"]
        if not isinstance(inputs, Tensor):
            shapes = {tuple(clip.shape) for clip in inputs}
            if len(shapes) > 1:
                raise ConfigError(f"clips of a batch have the shapes {sorted(shapes)}; crop them to one size")
            inputs = torch.stack(list(inputs))
        return {**data, "inputs": (inputs.float() / 255 - self.mean) / self.std}


@MODELS.register_module()
class PoseRecognizer(BaseModel):
    """The action in a video, by the class token of a TimeSformer that may be aware of poses (PAAB, PAAT).

    Data samples have ``gt_label``, ``pose_mask`` (bool ``[views, T, h, w]``, for PAAB) and ``joint_targets``
    (``[T, h, w, J]``, to train PAAT). A prediction sets ``pred_scores``, ``[classes]`` that sum to 1.

    Args:
        backbone: a ``visionattn.VideoTransformer``.
        num_classes: at least 1.
        joint_weight: of the joint heads' loss.
        dropout: before the classifier.
        views: how the scores of the views of a video become one: ``"mean"`` or ``"max"``.
        data_preprocessor: a `ClipPreprocessor` unless given.
        init_cfg: mmengine's initialisation.

    Raises:
        ConfigError: an argument does not do.
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
            raise ConfigError(f"model.num_classes={num_classes} must be at least 1")
        if views not in ("mean", "max"):
            raise ConfigError(f"model.views={views!r} must be mean or max")
        self.backbone = MODELS.build(backbone)
        if not isinstance(self.backbone, VideoTransformer):
            raise ConfigError(f"model.backbone.type={backbone.get('type')!r} must be visionattn.VideoTransformer")
        self.head_drop = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(self.backbone.num_features[0], num_classes)
        torch.nn.init.trunc_normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)
        self.joint_weight, self.views = joint_weight, views

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a checkpoint of the authors under this model's names; others as they are."""
        if any(name.startswith("backbone.net.") for name in weights):
            return weights
        found = self.backbone.net.convert_official(weights).state_dict
        return {f"{'' if name.startswith('head.') else 'backbone.net.'}{name}": value for name, value in found.items()}

    def forward(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"):
        """``"loss"``: a dict of losses; ``"predict"``: the samples with scores; ``"tensor"``: logits.

        Args:
            inputs: normed clips ``[B, views, 3, T, H, W]``.
            data_samples: see the class.
            mode: what to give; logits are ``[B, views, classes]``.
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
                raise ConfigError("PAAB: samples have no pose_mask; give key points to all, or use paab=()")
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
                raise ConfigError("PAAT: samples have no joint_targets; visionattn.PackClip makes them of key points")
            targets = torch.stack([sample.joint_targets for sample in samples]).flatten(0, 1).to(logits.device)
            if targets.shape[-1] != joints[0].shape[-1]:
                raise ConfigError(
                    f"PAAT: poses have {targets.shape[-1]} joints, model.backbone.num_joints is {joints[0].shape[-1]}"
                )
            losses["loss_joint"] = self.joint_weight * joint_loss(joints, targets)
        return losses | {"accuracy": (logits.detach().argmax(1) == labels).float().mean() * 100}

    def _predict(self, scores: Tensor, samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        if not torch.isfinite(scores).all():
            raise CheckpointError("the model puts out NaN or infinity; its checkpoint is from a failed run")
        scores = scores.mean(1) if self.views == "mean" else scores.amax(1)
        scores = scores / scores.sum(1, keepdim=True)
        for sample, row in zip(samples, scores.cpu(), strict=True):
            sample.set_field(row, "pred_scores")
        return list(samples)
