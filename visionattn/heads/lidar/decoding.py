"""Detections of a head in bird's-eye view, and the post-processing that the heads share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.heads.lidar.rotated_boxes import rotated_nms

__all__ = ["BEVDetections", "Decoding"]


@dataclass
class BEVDetections:
    """Detections of one sample.

    Attributes:
        boxes: float32 ``[N, 7]``: x, y, z of the center, dx, dy, dz in meters, heading counter-clockwise from +x.
        scores: float32 ``[N]``, in descending order.
        labels: int64 ``[N]``.
        velocity: float32 ``[N, 2]`` in meters per second, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    velocity: Tensor | None = None


@dataclass(frozen=True)
class Decoding:
    """Post-processing options of `CenterHead` and `TransFusionHead`.

    Attributes:
        max_candidates: number of cells kept per class and then over all classes; not used by `TransFusionHead`, which
            has a fixed number of proposals.
        score_threshold: a detection is kept if its score before rectification is greater.
        post_range: minimum x, y, z and maximum x, y, z of box centers, in meters; None keeps all.
        rectify: exponent of the predicted IoU, one for each class or one for all:
            score = score ** (1 - rectify) * iou ** rectify.
        nms_iou: IoU threshold of non-maximum suppression, one for each class or one for all. Classes with a threshold
            of 1 or more are not suppressed, and ``nms_pre`` and ``max_boxes`` do not apply to them.
        nms_pre: maximum number of boxes per class before suppression.
        max_boxes: maximum number of boxes per class after suppression.
    """

    max_candidates: int = 500
    score_threshold: float = 0.1
    post_range: Sequence[float] | None = None
    rectify: Sequence[float] | float = 0.0
    nms_iou: Sequence[float] | float = 0.7
    nms_pre: int = 4096
    max_boxes: int = 500

    def __post_init__(self) -> None:
        if self.post_range is not None and len(self.post_range) != 6:
            raise ValueError(f"`post_range` must be 6 numbers, got {list(self.post_range)}")
        rectify = [self.rectify] if isinstance(self.rectify, (int, float)) else self.rectify
        if not all(0 <= value <= 1 for value in rectify):
            raise ValueError(f"`rectify` must be in [0, 1], got {self.rectify}")

    def check(self, num_classes: int, iou: bool) -> None:
        """Check that the options match a head.

        Args:
            num_classes: number of classes of the head.
            iou: whether the head predicts the IoU of each box.

        Raises:
            ValueError: if ``rectify`` or ``nms_iou`` has another number of values, or ``rectify`` needs an IoU.
        """
        self.for_classes("nms_iou", num_classes)
        if any(self.for_classes("rectify", num_classes)) and not iou:
            raise ValueError(f"`rectify` must be 0 without the IoU branch (`iou`), got {self.rectify}")

    def for_classes(self, name: str, count: int) -> list[float]:
        """Values of ``rectify`` or ``nms_iou``, one for each class."""
        value = getattr(self, name)
        values = [float(value)] * count if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(values) != count:
            raise ValueError(f"`{name}` must have one value for each of {count} classes, got {len(values)}")
        return values

    def select(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: Tensor | None, num_classes: int
    ) -> BEVDetections:
        """Apply score threshold, range, rectification and suppression to the candidates of one sample.

        Args:
            boxes: float32 ``[N, 7]``, or ``[N, 9]`` with velocity.
            scores: float32 ``[N]``.
            labels: int64 ``[N]``.
            iou: output of the IoU branch ``[N]``, in [-1, 1]; None without rectification.
            num_classes: number of classes of the head.
        """
        kept = scores > self.score_threshold
        if self.post_range is not None:
            limits = boxes.new_tensor(list(self.post_range))
            kept &= ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(1)
        rectify = self.for_classes("rectify", num_classes)
        if iou is not None and any(rectify):
            share = scores.new_tensor(rectify)[labels]
            scores = scores.pow(1 - share) * ((iou + 1) / 2).clamp(0, 1).pow(share)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        parts = []
        for label, threshold in enumerate(self.for_classes("nms_iou", num_classes)):
            mine = (labels == label).nonzero().squeeze(1)
            if threshold < 1:
                mine = mine[scores[mine].sort(descending=True, stable=True).indices[: self.nms_pre]]
                mine = mine[rotated_nms(boxes[mine], scores[mine], threshold, max_boxes=self.max_boxes)]
            parts.append(mine)
        every = torch.cat(parts)
        every = every[scores[every].sort(descending=True, stable=True).indices]
        velocity = boxes[every, 7:9] if boxes.shape[1] > 7 else None
        return BEVDetections(boxes[every, :7], scores[every], labels[every], velocity)
