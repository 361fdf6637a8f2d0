"""Heads for image forgery: where was the picture edited, and was it at all.

The fusion head and the label head are those of NFA-ViT (arXiv 2504.11922), for feature maps of any backbone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

__all__ = ["ForgeryHead", "ForgeryOutput", "FusionHead", "forgery_losses", "label_decoder"]


@dataclass
class ForgeryOutput:
    """What a forgery model says of a batch.

    Attributes:
        mask_logits: ``[B, 1, H, W]`` in the size of the input; positive where forged.
        label_logits: ``[B]``; positive where the image is forged anywhere.
        aux_logits: ``[B, 1, H, W]`` of the noise branch alone in training, else None.
    """

    mask_logits: Tensor
    label_logits: Tensor
    aux_logits: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Probability that a pixel is forged, ``[B, 1, H, W]`` float32."""
        return self.mask_logits.float().sigmoid()

    @property
    def label(self) -> Tensor:
        """Probability that an image is forged, ``[B]`` float32, for a batch of one too."""
        return self.label_logits.float().sigmoid()


class FusionHead(nn.Module):
    """Sums feature maps of several strides with learned weights per channel, and maps them to logits.

    Each map goes through a 1x1 convolution and is resized to the first; the weighted sum is normed.

    Args:
        in_channels: channels of each map, the finest first.
        embed_dim: channels of the sum.
        out_channels: channels of the logits.
        gamma_init: first value of the weights; published: 1e-6, which the norm's epsilon lets through as almost
            nothing until the weights have grown.
        official: also have the two weights that the official model has and does not use.

    Parameter names: ``conv_layer1`` and so on, ``gamma1`` and so on, ``norm``, ``conv_last``.
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
            raise ValueError("in_channels is empty; there must be one number for each feature map")
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
        """Logits in the size of the first map.

        Args:
            features: ``[B, in_channels[i], H_i, W_i]``.

        Raises:
            ValueError: not as many maps as ``in_channels``.
        """
        return self.conv_last(self.fuse(features))

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """The normed sum that the logits are made from, ``[B, embed_dim, H_0, W_0]``."""
        if len(features) != len(self.in_channels):
            raise ValueError(f"features has {len(features)} maps; there must be {len(self.in_channels)}")
        total = None
        for index, feature in enumerate(features, 1):
            x = getattr(self, f"conv_layer{index}")(feature)
            if index > 1 and x.shape[2:] != features[0].shape[2:]:
                x = F.interpolate(x, size=features[0].shape[2:], mode="bilinear", align_corners=False)
            x = getattr(self, f"gamma{index}").view(1, -1, 1, 1) * x
            total = x if total is None else total + x
        return self.norm(total.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def label_decoder(channels: int) -> nn.Sequential:
    """NFA-ViT's label head: the mean of a map over all pixels, and one linear unit. ``[B, C, H, W]`` to ``[B, 1]``."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
    trunc_normal_(head[2].weight, std=0.02)
    nn.init.zeros_(head[2].bias)
    return head


class ForgeryHead(nn.Module):
    """Mask and label from the feature maps of any backbone.

    Args:
        in_channels: channels of each map, the finest first.
        embed_dim: see `FusionHead`.
        label_from_mask: the label also sees how strong the mask is: its maximum, and the mean of its strongest 5 %.
            A small forgery hardly moves the mean of the last map, which is all that the published head sees.
        gamma_init: see `FusionHead`.
        compare_regions: the label also sees what the suspected region is like and how it differs from the picture:
            the fused features averaged with the mask as weights, and these less their plain mean, through a small MLP.
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
        """Predict from maps ``[B, in_channels[i], H_i, W_i]``; the mask comes in ``size``, (height, width)."""
        fused = self.seg_decoder.fuse(features)
        coarse = self.seg_decoder.conv_last(fused)
        label = self.cls_decoder(features[-1])
        if self.mask_to_label is not None:
            values = coarse.flatten(1)
            strongest = values.topk(max(1, values.shape[1] // 20), dim=1).values
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
    """Binary cross-entropy of mask and label, as NFA-ViT, and of the noise branch's own mask.

    Args:
        output: of a model.
        mask: ``[B, 1, H, W]``, 1 where forged.
        label: ``[B]`` or ``[B, 1]``, 1 where an image is forged; None takes what the mask says.
        valid: ``[B, 1, H, W]``, 0 on pixels that do not count, such as padding.
        label_weight: factor on the loss of the label; published: 0.5.
        aux_weight: factor on the loss of ``output.aux_logits``, where there are some.
        dice_weight: factor on one minus the soft Dice coefficient over the pixels of forged images; published: 0.
        pos_weight: weight of forged pixels in the cross-entropy; None means 1.

    Returns:
        ``loss_mask``, ``loss_label`` and, where they apply, ``loss_aux`` and ``loss_dice``: weighted, to be summed.

    Raises:
        ValueError: ``mask`` or ``valid`` is not of the size of the prediction.
    """
    logits = output.mask_logits.float()
    for name, value in (("mask", mask), ("valid", valid)):
        if value is not None and value.shape != logits.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; the prediction has {tuple(logits.shape)}")
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
