"""The pose-aware auxiliary task (PAAT) on feature maps of any backbone, and its loss.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331), section 3.2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["JointMapHead", "joint_loss"]


def joint_loss(logits: Tensor | Sequence[Tensor], targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of joints in patches, mean over all cells and joints, and over several heads.

    Args:
        logits: of one head or several, each ``[..., J]``.
        targets: of the same shape, in 0..1.
        valid: ``[...]``, cells that count, such as those inside of the picture; None for all. Where none counts, the
            loss is 0.

    Raises:
        ValueError: the shapes differ.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    if not heads:
        raise ValueError("logits are of no head; the model has no joint heads")
    losses = []
    for head in heads:
        if head.shape != targets.shape:
            raise ValueError(f"logits have the shape {tuple(head.shape)}, targets {tuple(targets.shape)}")
        cells = F.binary_cross_entropy_with_logits(head.float(), targets.float(), reduction="none")
        if valid is None:
            losses.append(cells.mean())
        else:
            weight = valid[..., None].to(cells.dtype)
            losses.append((cells * weight).sum() / (weight.sum() * cells.shape[-1]).clamp(min=1))
    return torch.stack(losses).mean()


class JointMapHead(nn.Module):
    """Which joints lie in each cell of a feature map: two 1x1 convolutions without an activation between.

    An auxiliary head for training on pictures with key points; nothing changes in the backbone's own path, and it is
    left out to predict.

    Args:
        channels: of the feature map.
        joints: how many.
        hidden: channels between.
        weight: factor of the loss.
    """

    def __init__(self, channels: int, joints: int, hidden: int = 256, weight: float = 1.0) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("joints", joints), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.weight = weight
        self.proj1 = nn.Conv2d(channels, hidden, 1)
        self.proj2 = nn.Conv2d(hidden, joints, 1)
        for layer in (self.proj1, self.proj2):  # not both zero: no gradient would reach the backbone
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` to logits ``[B, J, H, W]``."""
        return self.proj2(self.proj1(features))

    def loss(self, features: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """The weighted loss.

        Args:
            features: ``[B, C, H, W]``.
            targets: ``[B, H, W, J]`` as `visionattn.heads.action.masks.joint_targets` makes them, with the map's stride
                as ``patch``.
            valid: ``[B, H, W]``, cells inside of the picture.
        """
        return self.weight * joint_loss(self(features).permute(0, 2, 3, 1), targets, valid)
