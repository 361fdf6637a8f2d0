"""Class activation maps on the feature maps of any backbone.

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
    """What `CAMHead` gives.

    Attributes:
        logits: ``[B, classes]``, the mean of `class_maps`.
        class_maps: ``[B, classes, h, w]``, each place's part in the logits.
    """

    logits: Tensor
    class_maps: Tensor


class CAMHead(nn.Module):
    """A linear classifier of the mean of a feature map, applied to each place before the mean is taken.

    Both orders give the same logits; this one gives the class activation maps with them.

    Args:
        in_channels: of the last feature map.
        num_classes: at least 1.
        dropout: share of the channels that training drops, the same in the whole map.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Sequence[Tensor]) -> CAMOutput:
        """Classify from the last of the feature maps ``[B, C, h, w]``."""
        class_maps = self.classifier(self.dropout(features[-1]))
        return CAMOutput(class_maps.mean((2, 3)), class_maps)

    def maps(self, output: CAMOutput, labels: Tensor) -> Tensor:
        """The activation maps of one class each, ``[B, 1, h, w]`` of any range, without the classifier's bias.

        Args:
            output: of `forward`.
            labels: int64 ``[B]``.
        """
        index = torch.arange(len(labels), device=labels.device)
        return (output.class_maps[index, labels] - self.classifier.bias[labels][:, None, None]).unsqueeze(1)

    def loss(self, output: CAMOutput, labels: Tensor) -> dict[str, Tensor]:
        """``loss_cls``, the cross-entropy with labels int64 ``[B]``."""
        return {"loss_cls": F.cross_entropy(output.logits.float(), labels)}


def grad_cam(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM of a feature map: its channels weighted by the mean gradient of a class's logit, and cut at 0.

    On the map that a `CAMHead` classifies it equals the class activation map, but for the cut and the scale. It is
    for maps of earlier stages, which are finer.

    Args:
        features: ``[B, C, h, w]``, from which `logits` were computed with gradients on.
        logits: ``[B, classes]``.
        labels: int64 ``[B]``.

    Returns:
        ``[B, 1, h, w]``, not negative, of any range.
    """
    chosen = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * features.detach()).sum(1, keepdim=True).relu()
