"""Pose-aware auxiliary task (PAAT) for feature maps of any backbone.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331), section 3.2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["JointMapHead", "joint_loss"]


def joint_loss(logits: Tensor | Sequence[Tensor], targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of joints per patch, averaged over cells, joints and heads.

    Args:
        logits: logits of one head ``[..., J]``, or a list with those of several heads.
        targets: targets of the same shape, in [0, 1].
        valid: mask ``[...]`` of the cells to average over, such as those inside the image; None for all. The loss is
            0 if no cell is valid.

    Raises:
        ValueError: if the shapes differ, or there are no logits.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    if not heads:
        raise ValueError("`logits` must be those of at least one head, got an empty list")
    losses = []
    for head in heads:
        if head.shape != targets.shape:
            raise ValueError(
                f"`logits` must have the shape of `targets` {tuple(targets.shape)}, got {tuple(head.shape)}"
            )
        cells = F.binary_cross_entropy_with_logits(head.float(), targets.float(), reduction="none")
        if valid is None:
            losses.append(cells.mean())
        else:
            weight = valid[..., None].to(cells.dtype)
            losses.append((cells * weight).sum() / (weight.sum() * cells.shape[-1]).clamp(min=1))
    return torch.stack(losses).mean()


class JointMapHead(nn.Module):
    """Predict which joints lie in each cell of a feature map: two 1x1 convolutions without an activation in between.

    An auxiliary head for training on images with keypoints. It does not change the backbone's features and is not
    used at inference.

    Args:
        channels: channels of the feature map.
        joints: number of joints.
        hidden: hidden channels.
        weight: weight of the loss.
    """

    def __init__(self, channels: int, joints: int, hidden: int = 256, weight: float = 1.0) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("joints", joints), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.weight = weight
        self.proj1 = nn.Conv2d(channels, hidden, 1)
        self.proj2 = nn.Conv2d(hidden, joints, 1)
        for layer in (self.proj1, self.proj2):  # zero weights would block the gradient to the backbone
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``[B, C, H, W]`` to logits ``[B, J, H, W]``."""
        return self.proj2(self.proj1(features))

    def loss(self, features: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the weighted loss.

        Args:
            features: ``[B, C, H, W]``.
            targets: ``[B, H, W, J]`` from `visionattn.heads.action.masks.joint_targets`, with the stride of the map as
                ``patch``.
            valid: mask ``[B, H, W]`` of the cells inside the image.
        """
        return self.weight * joint_loss(self(features).permute(0, 2, 3, 1), targets, valid)
