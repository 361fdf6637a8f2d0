"""Forgery localization models for mmengine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import PixelData
from torch import Tensor, nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.forgery import mmlab_data, mmlab_metric  # noqa: F401  (registered with this module)
from visionattn.heads.forgery.heads import ForgeryOutput, forgery_losses
from visionattn.heads.forgery.net import ForgeryNet
from visionattn.heads.forgery.nfa_vit import NFAViT

__all__ = ["ForgeryLocalizer", "ForgeryModel", "NFAViTLocalizer"]

IGNORED = 255


class ForgeryModel(BaseModel):
    """Base class of the forgery models.

    Data samples are mmseg's, with ``gt_sem_seg`` 0 (authentic), 1 (forged) or 255 (ignored). Prediction sets
    ``forgery_prob`` (``[1, H, W]`` at the size of the original image), ``forgery_score`` (probability that the image
    is forged), and mmseg's ``pred_sem_seg`` and ``seg_logits``.

    Args:
        net: network that maps ``[B, 3, H, W]`` to a `ForgeryOutput`.
        data_preprocessor: config of mmseg's data preprocessor.
        loss: arguments of `visionattn.heads.forgery.heads.forgery_losses`.
        threshold: pixels with a probability above it are forged.
        score_from_mask: use the maximum pixel probability as the image score, for networks whose label head was not
            trained.
        init_cfg: see ``mmengine.model.BaseModule``.
    """

    job = "forgery"

    def __init__(
        self,
        net: nn.Module,
        data_preprocessor: dict | None,
        loss: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        score_from_mask: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.net, self.loss_options = net, dict(loss or {})
        self.threshold, self.score_from_mask = threshold, score_from_mask

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = "tensor") -> Any:
        """Run the model.

        Args:
            inputs: normalized images ``[B, 3, H, W]``.
            data_samples: one data sample per image; needed for ``"loss"`` and ``"predict"``.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            A dict of losses, the data samples with predictions, or mask logits ``[B, 1, H, W]``.
        """
        output = self.net(inputs)
        if mode == "loss":
            return self._loss(output, data_samples)
        if mode == "predict":
            return self._predict(output, data_samples)
        return output.mask_logits

    def _loss(self, output: ForgeryOutput, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        truth = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).to(output.mask_logits.device)
        valid = truth != IGNORED
        return forgery_losses(output, truth == 1, valid=None if bool(valid.all()) else valid, **self.loss_options)

    def _predict(self, output: ForgeryOutput, data_samples: Sequence[Any]) -> Sequence[Any]:
        labels = output.label
        for logits, label, sample in zip(output.mask_logits.float(), labels, data_samples, strict=True):
            height, width = sample.metainfo.get("img_shape", logits.shape[1:])[:2]
            logits = logits[:, :height, :width]
            size = tuple(sample.metainfo.get("ori_shape", (height, width))[:2])
            if logits.shape[1:] != size:
                logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
            probability = logits.sigmoid()
            sample.forgery_prob = PixelData(data=probability)
            sample.forgery_score = probability.amax() if self.score_from_mask else label
            sample.pred_sem_seg = PixelData(data=(probability > self.threshold).long())
            sample.seg_logits = PixelData(data=torch.cat([torch.zeros_like(logits), logits]))
        return data_samples


@MODELS.register_module()
class ForgeryLocalizer(ForgeryModel):
    """`visionattn.heads.forgery.net.ForgeryNet` on any registered backbone with ``num_features`` and ``strides``.

    Args:
        backbone: config of the backbone, such as ``dict(type="visionattn.Backbone", model_name="dinat_mini")``.
        noise, noise_branch, guided, fuse_noise, embed_dim: see `ForgeryNet`.
        label_from_mask, compare_regions, image_scale, residual_maps, matches, aux, copies: see `ForgeryNet`.
        data_preprocessor, loss, threshold, score_from_mask, init_cfg: see `ForgeryModel`.

    Raises:
        ConfigError: if an argument is out of range.
    """

    def __init__(
        self,
        backbone: dict,
        noise: str | None = "statistics",
        noise_branch: dict | None = None,
        guided: bool = True,
        fuse_noise: bool = True,
        embed_dim: int = 128,
        label_from_mask: bool = True,
        compare_regions: bool = False,
        image_scale: float = 1.0,
        residual_maps: int = 48,
        matches: bool = False,
        aux: bool = True,
        copies: bool = False,
        data_preprocessor: dict | None = None,
        loss: dict | None = None,
        threshold: float = 0.5,
        score_from_mask: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        built = ROOT_MODELS.build(backbone)
        try:
            net = ForgeryNet(
                built, built.num_features, built.strides, noise, noise_branch, guided=guided, fuse_noise=fuse_noise,
                embed_dim=embed_dim, label_from_mask=label_from_mask, compare_regions=compare_regions,
                image_scale=image_scale, residual_maps=residual_maps, matches=matches, aux=aux, copies=copies,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model: {error}") from error
        super().__init__(net, data_preprocessor, loss, threshold, score_from_mask, init_cfg)


@MODELS.register_module()
class NFAViTLocalizer(ForgeryModel):
    """`visionattn.heads.forgery.nfa_vit.NFAViT`, from scratch, from pretrained parts, or from a released checkpoint.

    Args:
        official_checkpoint: checkpoint file of the official code; selects ``official=True``, see `NFAViT`.
        extractor, noise_pretrained, image_pretrained: checkpoint files of Noiseprint's DnCNN, MiT-b0 and MiT-b2.
        net: arguments of `NFAViT`.
        data_preprocessor, loss, threshold, score_from_mask, init_cfg: see `ForgeryModel`.

    Raises:
        ConfigError: if an argument of ``net`` is out of range.
        CheckpointError: if a checkpoint does not match.
    """

    def __init__(
        self,
        official_checkpoint: str | None = None,
        extractor: str | None = None,
        noise_pretrained: str | None = None,
        image_pretrained: str | None = None,
        net: dict | None = None,
        data_preprocessor: dict | None = None,
        loss: dict | None = None,
        threshold: float = 0.5,
        score_from_mask: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        try:
            if official_checkpoint is not None:
                built, _ = NFAViT.from_official(checkpoints.read(official_checkpoint), **(net or {}))
            else:
                built = NFAViT(**(net or {}))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.net: {error}") from error
        parts = {"extractor": extractor, "noise": noise_pretrained, "image": image_pretrained}
        given = {name: checkpoints.read(path) for name, path in parts.items() if path}
        if given:
            built.load_branches(**given)
        super().__init__(built, data_preprocessor, loss, threshold, score_from_mask, init_cfg)

    def own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of the official code under the names of this model; others are unchanged.

        Raises:
            CheckpointError: this model is not the published one, see the argument ``official`` of `NFAViT`.
        """
        if not any(name.startswith("seg_decoder.") for name in weights):
            return dict(weights)
        if not self.net.official:
            raise CheckpointError(
                "the file has the names of the official code of NFA-ViT, but the config is not the published model; "
                "use the config nfa-vit-published_4xb16-200e_brgen-512x512 or model.official_checkpoint"
            )
        return {f"net.{name}": tensor for name, tensor in weights.items()}
