"""Weakly supervised localization models for mmengine: SAT, class activation maps, and dual cross-attention."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from visionattn.backbones._download import create_model
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.localization import mmlab_data, mmlab_metric  # noqa: F401  (registered with this module)
from visionattn.heads.localization.cam import CAMHead, CAMOutput, grad_cam
from visionattn.heads.localization.metrics_sat import box_of_largest_region, normalize_map
from visionattn.heads.localization.sat import SpatialAwareToken, SpatialAwareTokenOutput
from visionattn.layers import DualCrossAttention

__all__ = ["CAM", "DCAL", "SAT", "VisionTransformer"]


@MODELS.register_module()
class VisionTransformer(BaseModule):
    """A timm vision transformer for images of any size, for models that access its blocks directly.

    Args:
        model_name: timm model name, such as ``"deit_small_patch16_224"``.
        pretrained: whether timm downloads pretrained weights.
        init_cfg: see ``mmengine.model.BaseModule``.
        **kwargs: passed to ``timm.create_model``, such as ``drop_path_rate`` or ``img_size``.

    Raises:
        ConfigError: if the name is unknown to timm, or is not a timm ``VisionTransformer``.
    """

    open_arguments = True

    def __init__(
        self, model_name: str, pretrained: bool | None = None, init_cfg: dict | list | None = None, **kwargs: Any
    ) -> None:
        super().__init__(init_cfg)
        if not timm.is_model(model_name.split(".", 1)[0]):
            raise ConfigError(
                f"backbone: `model_name` must be a model registered with timm (see timm.list_models()), "
                f"got {model_name!r}"
            )
        options = {"dynamic_img_size": True, "dynamic_img_pad": True, "num_classes": 0, **kwargs}
        try:
            self.net = create_model(model_name, bool(pretrained), **options)
        except TypeError as error:
            raise ConfigError(
                f"backbone: `model_name` must be a timm VisionTransformer, got {model_name!r} ({error})"
            ) from error
        if not isinstance(self.net, timm.models.VisionTransformer):
            raise ConfigError(
                f"backbone: `model_name` must be a timm VisionTransformer, "
                f"got {model_name!r}, a {type(self.net).__name__}"
            )

    def init_weights(self) -> None:
        """Do nothing: timm initialized the weights."""
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Compute the normalized patch tokens as one feature map ``[B, C, h, w]``."""
        return tuple(self.net.forward_intermediates(x, indices=1, norm=True, intermediates_only=True))


class Localizer(BaseModel):
    """Base class of the localization models.

    In ``"predict"`` mode, each sample gets ``pred_scores`` (softmax ``[classes]``), ``pred_map`` (float32 ``[h, w]``
    over the image, for the predicted class), ``true_map`` (the same for the ground-truth class, if given; used for
    evaluation) and ``pred_instances``: one box in pixels of the original image around the largest region of the map,
    with the predicted class and its score. If the pipeline has `TenCrop`, the scores are averaged over the crops, and
    ``true_map`` covers the center crop, as in the evaluation of SAT.
    """

    job = "localization"

    def __init__(self, box_threshold: float, data_preprocessor: dict | None, init_cfg: dict | None) -> None:
        super().__init__(data_preprocessor or {"type": "ImgDataPreprocessor"}, init_cfg)
        if not 0 <= box_threshold < 1:
            raise ConfigError(f"model: `box_threshold` must be in [0, 1), got {box_threshold}")
        self.box_threshold = box_threshold

    def _loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        raise NotImplementedError

    def _predict(self, inputs: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, and maps ``[B, 1, h, w]`` of the predicted and the ground-truth classes."""
        raise NotImplementedError

    def _tensor(self, inputs: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"):
        """Run the model.

        Args:
            inputs: normalized images ``[B, 3, H, W]``.
            data_samples: one data sample per image, with ``gt_label`` for ``"loss"``.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            A dict of losses, the data samples (see the class docstring), or the output of the head.
        """
        if mode == "tensor":
            return self._tensor(inputs)
        labels = _labels(data_samples)
        if mode == "loss":
            losses, logits = self._loss(inputs, labels.to(inputs.device))
            right = logits.detach().argmax(1) == labels.to(inputs.device)
            return losses | {"accuracy": right.float().mean() * 100}
        if mode != "predict":
            raise ValueError(f"`mode` must be 'tensor', 'loss' or 'predict', got {mode!r}")
        logits, best, true = self._predict(inputs, None if labels is None else labels.to(inputs.device))
        scores = self._crop_scores(data_samples)
        scores = logits.float().softmax(1) if scores is None else scores
        if not torch.isfinite(scores).all():
            raise CheckpointError("the model outputs NaN or infinity; the checkpoint is from a diverged training run")
        for index, sample in enumerate(data_samples):
            sample.set_field(scores[index].cpu(), "pred_scores")
            shown = _around_crop(_of_picture(best[index], inputs.shape[-2:], sample), sample)
            sample.set_field(shown, "pred_map")
            if labels is not None:
                sample.set_field(_of_picture(true[index], inputs.shape[-2:], sample), "true_map")
            score, label = scores[index].max(0)
            heat = normalize_map(shown.numpy(), sample.metainfo["ori_shape"][:2])
            box = box_of_largest_region(heat, self.box_threshold).astype(np.float32)
            found = InstanceData(
                bboxes=torch.from_numpy(box)[None],
                scores=score[None].cpu(),
                labels=label[None].cpu(),
            )
            sample.set_field(found, "pred_instances")
        return list(data_samples)

    def _crop_scores(self, samples: Sequence[BaseDataElement]) -> Tensor | None:
        """Mean softmax over the crops of each sample, ``[B, classes]``; None without crops."""
        if "crops" not in samples[0]:
            return None
        scores = []
        for sample in samples:  # one at a time, since the crops of a batch need ten times its memory
            crops = self.data_preprocessor({"inputs": list(sample.pop("crops"))})["inputs"]
            scores.append(self._tensor(crops).logits.float().softmax(1).mean(0))
        return torch.stack(scores)


def _labels(samples: Sequence[BaseDataElement] | None) -> Tensor | None:
    if not samples or "gt_label" not in samples[0]:
        return None
    return torch.stack([torch.as_tensor(sample.gt_label) for sample in samples]).long()


def _of_picture(score_map: Tensor, padded: Sequence[int], sample: BaseDataElement) -> Tensor:
    """Remove the padding from a map ``[1, h, w]`` of a padded input; float32 ``[h, w]`` on the CPU."""
    height, width = sample.metainfo["img_shape"][:2]
    rows, columns = score_map.shape[-2:]
    stride = -(-padded[0] // rows), -(-padded[1] // columns)
    covered = rows * stride[0], columns * stride[1]
    score_map = score_map.detach().float().cpu()
    if covered == (height, width):
        return score_map[0]
    fine = F.interpolate(score_map[None], size=covered, mode="bilinear", align_corners=False)
    return fine[0, 0, :height, :width].contiguous()


def _around_crop(score_map: Tensor, sample: BaseDataElement) -> Tensor:
    """Pad the map of the center crop of `TenCrop` to the whole image, with its minimum."""
    whole = sample.metainfo.get("cropped_from")
    if whole is None:
        return score_map
    height, width = sample.metainfo["img_shape"][:2]
    fine = F.interpolate(score_map[None, None], size=(height, width), mode="bilinear", align_corners=False)
    top, left = round((whole[0] - height) / 2), round((whole[1] - width) / 2)
    sides = (left, whole[1] - width - left, top, whole[0] - height - top)
    return F.pad(fine[0, 0], sides, value=float(score_map.min()))


@MODELS.register_module()
class SAT(Localizer):
    """Spatial-aware token; see `visionattn.heads.localization.sat.SpatialAwareToken`.

    Args:
        backbone: config of a ``visionattn.VisionTransformer``.
        num_classes: number of classes, at least 1.
        aware_blocks: number of final blocks that use the mask.
        area: mean fraction of the image area that objects cover.
        sync_area: whether to average the area over all processes.
        pretrained: checkpoint file of the authors, or of a plain ViT or DeiT.
        box_threshold: threshold on the normalized map for the predicted box; 0.4 in the paper.
        data_preprocessor: config of the data preprocessor. Defaults to mmengine's ``ImgDataPreprocessor``.
        init_cfg: see ``mmengine.model.BaseModule``.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        aware_blocks: int = 3,
        area: float = 0.25,
        sync_area: bool = False,
        pretrained: str | None = None,
        box_threshold: float = 0.4,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(box_threshold, data_preprocessor, init_cfg)
        vit = _build_vit(backbone)
        try:
            self.sat = SpatialAwareToken(vit, num_classes, aware_blocks=aware_blocks, area=area, sync_area=sync_area)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
        if pretrained:
            self.sat.load_official(checkpoints.read(Path(pretrained).expanduser()))

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the weights of a checkpoint of the authors to this model's names; return others unchanged."""
        if "loc_token" not in weights:
            return weights
        return {f"sat.{name}": value for name, value in self.sat.convert_official(weights).state_dict.items()}

    def _tensor(self, inputs: Tensor) -> SpatialAwareTokenOutput:
        return self.sat(inputs)

    def _loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        output = self.sat(inputs)
        return self.sat.loss(output, labels), output.logits

    def _predict(self, inputs: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        output = self.sat(inputs)
        return output.logits, output.maps, output.maps


def _build_vit(config: Mapping[str, Any]) -> timm.models.VisionTransformer:
    backbone = MODELS.build(config)
    if not isinstance(backbone, VisionTransformer):
        raise ConfigError(f"model: `backbone` must be a visionattn.VisionTransformer, got {config.get('type')!r}")
    return backbone.net


class DCALOutput(NamedTuple):
    """Output of `DCAL`.

    Attributes:
        logits: logarithm of the class probabilities, the mean of both branches, ``[B, classes]``.
        maps: attention rollout from the class token to the patches, ``[B, 1, h, w]``; the same for all classes.
    """

    logits: Tensor
    maps: Tensor


@MODELS.register_module()
class DCAL(Localizer):
    """Fine-grained classifier with dual cross-attention; see `visionattn.layers.DualCrossAttention`.

    Its map is the attention rollout, from which the patches of the local branch are selected.

    Args:
        backbone: config of a ``visionattn.VisionTransformer`` with a class token.
        num_classes: number of classes, at least 1.
        share: fraction of the patches that are queries of the local branch.
        box_threshold: threshold on the normalized map for the predicted box.
        data_preprocessor: config of the data preprocessor. Defaults to mmengine's ``ImgDataPreprocessor``.
        init_cfg: see ``mmengine.model.BaseModule``.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        share: float = 0.1,
        box_threshold: float = 0.4,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(box_threshold, data_preprocessor, init_cfg)
        vit = _build_vit(backbone)
        vit.reset_classifier(num_classes)
        try:
            self.dcal = DualCrossAttention(vit, share)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error

    def _tensor(self, inputs: Tensor) -> DCALOutput:
        output = self.dcal(inputs)
        rows, columns = self.dcal.vit.patch_embed.dynamic_feat_size(inputs.shape[-2:])
        logits = self.dcal.probabilities(output).clamp(min=1e-30).log()
        return DCALOutput(logits, output.rollout.reshape(-1, 1, rows, columns))

    def _loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        output = self.dcal(inputs)
        return self.dcal.loss(output, labels), self.dcal.probabilities(output)

    def _predict(self, inputs: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        output = self._tensor(inputs)
        return output.logits, output.maps, output.maps


@MODELS.register_module()
class CAM(Localizer):
    """Classifier with class activation maps; see `visionattn.heads.localization.cam`.

    A backbone truncated at an earlier stage, such as ``out_indices=(2,)``, gives maps of higher resolution. With
    ``method="grad_cam"``, the map may come from an earlier stage than the classified one.

    Args:
        backbone: config of a ``visionattn.Backbone``, or any backbone that returns feature maps.
        num_classes: number of classes, at least 1.
        in_channels: channels of the last feature map. Defaults to the backbone's ``num_features``.
        method: ``"cam"`` (classifier weights) or ``"grad_cam"``.
        level: for Grad-CAM, index of the backbone output that the map is computed from.
        dropout: dropout probability before the classifier.
        box_threshold: threshold on the normalized map for the predicted box.
        data_preprocessor: config of the data preprocessor. Defaults to mmengine's ``ImgDataPreprocessor``.
        init_cfg: see ``mmengine.model.BaseModule``.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        in_channels: int | None = None,
        method: str = "cam",
        level: int = -1,
        dropout: float = 0.0,
        box_threshold: float = 0.4,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(box_threshold, data_preprocessor, init_cfg)
        if method not in ("cam", "grad_cam"):
            raise ConfigError(f"model: `method` must be 'cam' or 'grad_cam', got {method!r}")
        if method == "cam" and level != -1:
            raise ConfigError(f"model: `level` must be -1 with method 'cam', got {level}")
        self.backbone = MODELS.build(backbone)
        channels = in_channels or getattr(self.backbone, "num_features", [None])[-1]
        if channels is None:
            raise ConfigError("model: `in_channels` must be set, since the backbone has no num_features")
        self.head = CAMHead(channels, num_classes, dropout=dropout)
        self.method, self.level = method, level

    def _tensor(self, inputs: Tensor) -> CAMOutput:
        return self.head(self.backbone(inputs))

    def _loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        output = self._tensor(inputs)
        return self.head.loss(output, labels), output.logits

    def _predict(self, inputs: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.method == "cam":
            output = self._tensor(inputs)
            found = self.head.maps(output, output.logits.argmax(1))
            return output.logits, found, found if truth is None else self.head.maps(output, truth)
        with torch.inference_mode(False), torch.enable_grad():
            features = self.backbone(inputs.clone().requires_grad_())
            output = self.head(features)
            chosen = features[self.level]
            found = grad_cam(chosen, output.logits, output.logits.argmax(1))
            true = found if truth is None else grad_cam(chosen, output.logits, truth.clone())
        return output.logits.detach(), found, true
