"""Heads for image forgery localization and detection.

The fusion head and the label head are those of NFA-ViT (arXiv 2504.11922), for feature maps of any backbone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from visionattn.kernels.exporting import maximum

__all__ = ["ForgeryHead", "ForgeryOutput", "FusionHead", "forgery_losses", "label_decoder"]


@dataclass
class ForgeryOutput:
    """Output of a forgery model.

    Attributes:
        mask_logits: ``[B, 1, H, W]`` at the input size; positive where forged.
        label_logits: ``[B]``; positive if the image is forged.
        aux_logits: ``[B, 1, H, W]``, mask logits of the noise branch in training; otherwise None.
    """

    mask_logits: Tensor
    label_logits: Tensor
    aux_logits: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Probability that each pixel is forged, float32 ``[B, 1, H, W]``."""
        return self.mask_logits.float().sigmoid()

    @property
    def label(self) -> Tensor:
        """Probability that each image is forged, float32 ``[B]``."""
        return self.label_logits.float().sigmoid()


class FusionHead(nn.Module):
    """Fuse feature maps of several strides by a weighted sum with learned weights per channel.

    Each map is projected by a 1x1 convolution and resized to the first; the weighted sum is normalized and mapped to
    logits. Parameter names: ``conv_layer1``, ..., ``gamma1``, ..., ``norm``, ``conv_last``.

    Args:
        in_channels: channels of each map, highest resolution first.
        embed_dim: channels of the sum.
        out_channels: channels of the logits.
        gamma_init: initial value of the weights. The published 1e-6 is so small compared to the epsilon of the norm
            that the output stays near zero until the weights have grown.
        official: add the two unused weights of the official model.

    Raises:
        ValueError: if ``in_channels`` is empty.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_dim: int = 512,
        out_channels: int = 1,
        gamma_init: float = 1e-6,
        official: bool = False,
    ) -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("`in_channels` must have one number for each feature map, got none")
        self.in_channels = tuple(in_channels)
        for index in range(1, len(self.in_channels) + 1 + 2 * official):
            weight = nn.Parameter(torch.full((embed_dim,), gamma_init))
            weight.requires_grad_(index <= len(self.in_channels))
            self.register_parameter(f"gamma{index}", weight)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        for index, channels in enumerate(self.in_channels, 1):
            self.add_module(f"conv_layer{index}", nn.Conv2d(channels, embed_dim, 1))
        self.conv_last = nn.Conv2d(embed_dim, out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Compute logits at the size of the first map.

        Args:
            features: ``[B, in_channels[i], H_i, W_i]``.

        Returns:
            ``[B, out_channels, H_0, W_0]``.

        Raises:
            ValueError: if the number of maps differs from that of ``in_channels``.
        """
        return self.conv_last(self.fuse(features))

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Compute the normalized sum before the last convolution, ``[B, embed_dim, H_0, W_0]``."""
        if len(features) != len(self.in_channels):
            raise ValueError(f"`features` must have {len(self.in_channels)} maps, got {len(features)}")
        total = None
        for index, feature in enumerate(features, 1):
            x = getattr(self, f"conv_layer{index}")(feature)
            if index > 1 and x.shape[2:] != features[0].shape[2:]:
                x = F.interpolate(x, size=features[0].shape[2:], mode="bilinear", align_corners=False)
            x = getattr(self, f"gamma{index}").view(1, -1, 1, 1) * x
            total = x if total is None else total + x
        return self.norm(total.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def label_decoder(channels: int) -> nn.Sequential:
    """Label head of NFA-ViT: global average pooling and a linear layer, ``[B, C, H, W]`` to ``[B, 1]``."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
    trunc_normal_(head[2].weight, std=0.02)
    nn.init.zeros_(head[2].bias)
    return head


class ForgeryHead(nn.Module):
    """Predict a mask and a label from the feature maps of any backbone.

    Args:
        in_channels: channels of each map, highest resolution first.
        embed_dim: see `FusionHead`.
        label_from_mask: whether the label logit also depends on the maximum of the mask logits and the mean of their
            top 5 %. A small forgery hardly changes the mean of the last map, the only input of the published head.
        gamma_init: see `FusionHead`.
        compare_regions: whether the label logit also depends on the fused features averaged with the mask as weights,
            and on their difference from the unweighted mean, through a small MLP.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_dim: int = 256,
        label_from_mask: bool = True,
        gamma_init: float = 1.0,
        compare_regions: bool = False,
    ) -> None:
        super().__init__()
        self.seg_decoder = FusionHead(in_channels, embed_dim, gamma_init=gamma_init)
        self.cls_decoder = label_decoder(in_channels[-1])
        self.mask_to_label = nn.Linear(2, 1, bias=False) if label_from_mask else None
        if self.mask_to_label is not None:
            nn.init.constant_(self.mask_to_label.weight, 0.25)
        self.regions_to_label = None
        if compare_regions:
            self.regions_to_label = nn.Sequential(
                nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, 1)
            )
            nn.init.zeros_(self.regions_to_label[2].weight)
            nn.init.zeros_(self.regions_to_label[2].bias)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> ForgeryOutput:
        """Predict mask and label.

        Args:
            features: maps ``[B, in_channels[i], H_i, W_i]``.
            size: height and width of the output mask.
        """
        fused = self.seg_decoder.fuse(features)
        coarse = self.seg_decoder.conv_last(fused)
        label = self.cls_decoder(features[-1])
        if self.mask_to_label is not None:
            values = coarse.flatten(1)
            strongest = values.topk(maximum(1, values.shape[1] // 20), dim=1).values
            label = label + self.mask_to_label(torch.stack([strongest[:, 0], strongest.mean(1)], 1))
        if self.regions_to_label is not None:
            weights = coarse.flatten(2).softmax(2)
            suspected = (fused.flatten(2) * weights).sum(2)
            label = label + self.regions_to_label(torch.cat([suspected, suspected - fused.mean((2, 3))], 1))
        mask = F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)
        return ForgeryOutput(mask, label[:, 0])


def forgery_losses(
    output: ForgeryOutput,
    mask: Tensor,
    label: Tensor | None = None,
    valid: Tensor | None = None,
    label_weight: float = 0.5,
    aux_weight: float = 0.5,
    dice_weight: float = 0.0,
    pos_weight: float | None = None,
) -> dict[str, Tensor]:
    """Compute the binary cross-entropy of mask and label as in NFA-ViT, and of the mask of the noise branch.

    Args:
        output: output of a forgery model.
        mask: ``[B, 1, H, W]``, 1 where forged.
        label: ``[B]`` or ``[B, 1]``, 1 for forged images. Defaults to 1 if the mask has forged pixels.
        valid: ``[B, 1, H, W]``, 0 on pixels to ignore, such as padding.
        label_weight: weight of the label loss; 0.5 in the paper.
        aux_weight: weight of the loss of ``output.aux_logits``, if present.
        dice_weight: weight of the soft Dice loss of forged images; 0 in the paper.
        pos_weight: weight of forged pixels in the cross-entropy; None means 1.

    Returns:
        Weighted ``loss_mask``, ``loss_label`` and, if they apply, ``loss_aux`` and ``loss_dice``.

    Raises:
        ValueError: if ``mask`` or ``valid`` does not have the shape of the prediction.
    """
    logits = output.mask_logits.float()
    for name, value in (("mask", mask), ("valid", valid)):
        if value is not None and value.shape != logits.shape:
            raise ValueError(
                f"`{name}` must have the shape of the prediction {tuple(logits.shape)}, got {tuple(value.shape)}"
            )
    target = mask.to(logits.dtype)
    weight = None if valid is None else valid.to(logits.dtype)
    if label is None:
        label = (target if weight is None else target * weight).flatten(1).amax(1)
    label = label.reshape(-1).to(logits.dtype)
    positive = None if pos_weight is None else logits.new_tensor(pos_weight)

    def pixels(values: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(values.float(), target, weight, pos_weight=positive, reduction="sum")
        return loss / (target.numel() if weight is None else weight.sum().clamp(min=1))

    losses = {
        "loss_mask": pixels(logits),
        "loss_label": label_weight * F.binary_cross_entropy_with_logits(output.label_logits.float(), label),
    }
    if output.aux_logits is not None:
        losses["loss_aux"] = aux_weight * pixels(output.aux_logits)
    if dice_weight:
        forged = logits.sigmoid() if weight is None else logits.sigmoid() * weight
        real = target if weight is None else target * weight
        overlap = 2 * (forged * real).flatten(1).sum(1) / (forged + real).flatten(1).sum(1).clamp(min=1)
        losses["loss_dice"] = dice_weight * ((1 - overlap) * label).sum() / label.sum().clamp(min=1)
    return losses
