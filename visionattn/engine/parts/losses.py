"""Cross-entropy with both class weights and ignored pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.engine.registry import MODELS
from visionattn.errors import ConfigError

__all__ = ["CrossEntropyLoss"]


@MODELS.register_module()
class CrossEntropyLoss(nn.Module):
    """Pixel-wise softmax cross-entropy, averaged with class weights as in ``torch.nn.CrossEntropyLoss``.

    The ``CrossEntropyLoss`` of mmseg 1.2 indexes the class weights with the label and fails for ignored pixels.

    In a config: ``loss_decode=dict(type="visionattn.CrossEntropyLoss", class_weight=[0.5, 2.0])``.

    Args:
        class_weight: one weight per class; None for equal weights.
        label_smoothing: amount of label smoothing in [0, 1].
        loss_weight: factor on the loss.
        loss_name: name in the log; only losses whose name starts with ``loss_`` are part of the training loss.

    Shapes: scores ``[B, C, H, W]``, labels int64 ``[B, H, W]``, result scalar; 0 if all pixels are ignored.

    Raises:
        ConfigError: in the first step, if the number of weights differs from the number of classes.
    """

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
    ) -> None:
        super().__init__()
        self.class_weight = None if class_weight is None else [float(value) for value in class_weight]
        self.label_smoothing, self.loss_weight, self.loss_name = label_smoothing, loss_weight, loss_name

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """Compute the loss; ``weight``, ``[B, H, W]``, has the weights of a pixel sampler."""
        classes = cls_score.shape[1]
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise ConfigError(
                f"loss_decode.class_weight has {len(self.class_weight)} values, but the head has {classes} classes"
            )
        factors = None if self.class_weight is None else cls_score.new_tensor(self.class_weight, dtype=torch.float32)
        losses = F.cross_entropy(
            cls_score.float(),
            label,
            weight=factors,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        counted = label != ignore_index
        share = counted.float() if factors is None else factors[label * counted] * counted
        if weight is not None:
            losses, share = losses * weight, share * (weight > 0)
        return self.loss_weight * losses.sum() / share.sum().clamp(min=torch.finfo(torch.float32).tiny)
