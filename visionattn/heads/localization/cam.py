"""Class activation maps (CAM) and Grad-CAM for feature maps of any backbone.

Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016, arXiv 1512.04150), and Grad-CAM,
Selvaraju et al. (ICCV 2017, arXiv 1610.02391).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CAMHead", "CAMOutput", "grad_cam"]


class CAMOutput(NamedTuple):
    """Output of `CAMHead`.

    Attributes:
        logits: ``[B, classes]``, the spatial mean of ``class_maps``.
        class_maps: ``[B, classes, h, w]``, the contribution of each position to the logits.
    """

    logits: Tensor
    class_maps: Tensor


class CAMHead(nn.Module):
    """Linear classifier applied to each position of a feature map before global average pooling.

    The logits equal those of pooling first; this order also yields the class activation maps.

    Args:
        in_channels: channels of the last feature map.
        num_classes: number of classes, at least 1.
        dropout: probability of dropping a channel in training.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Sequence[Tensor]) -> CAMOutput:
        """Classify the last of the feature maps, ``[B, C, h, w]``."""
        class_maps = self.classifier(self.dropout(features[-1]))
        return CAMOutput(class_maps.mean((2, 3)), class_maps)

    def maps(self, output: CAMOutput, labels: Tensor) -> Tensor:
        """Class activation maps of one class per image, without the bias of the classifier.

        Args:
            output: return value of `forward`.
            labels: int64 ``[B]``.

        Returns:
            ``[B, 1, h, w]``, not normalized.
        """
        index = torch.arange(len(labels), device=labels.device)
        return (output.class_maps[index, labels] - self.classifier.bias[labels][:, None, None]).unsqueeze(1)

    def loss(self, output: CAMOutput, labels: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_cls``, the cross-entropy with labels int64 ``[B]``."""
        return {"loss_cls": F.cross_entropy(output.logits.float(), labels)}


def grad_cam(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM: the ReLU of the feature channels weighted by the mean gradient of a class logit.

    On the feature map that a `CAMHead` classifies, it equals the class activation map up to the ReLU and a scale. It
    also applies to feature maps of earlier stages, which have a higher resolution.

    Args:
        features: ``[B, C, h, w]``, from which ``logits`` were computed with gradients enabled.
        logits: ``[B, classes]``.
        labels: int64 ``[B]``.

    Returns:
        ``[B, 1, h, w]``, not negative and not normalized.
    """
    chosen = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * features.detach()).sum(1, keepdim=True).relu()
