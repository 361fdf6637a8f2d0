"""Final outputs of detectors in tensor operations, for export.

The modules follow the test code of mmdet step by step, on its own box coders, anchor generators and weights. Their
outputs have a fixed number of rows K per image, best first; rows after ``count`` have the score 0 and the label -1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.inference.export.outputs import FinalOutputs, gather_rows, scale_boxes
from visionattn.kernels.selection import nms_mask, top_scores

__all__ = ["BOX_OUTPUTS", "BoxOutputs", "DenseOutputs", "best_rows", "clip_boxes", "decode_boxes", "suppress"]

BOX_OUTPUTS = ("boxes", "scores", "labels", "count")


class BoxOutputs(FinalOutputs):
    """Base class of the outputs of detectors.

    Outputs: ``boxes [B, K, 4]`` (x1, y1, x2, y2 in pixels of the input image), ``scores [B, K]``, ``labels [B, K]``
    (int64), and ``count [B]`` (int64), the number of detections of each image.

    Args:
        model: the detector.
        test_cfg: its ``score_thr``, ``nms`` and ``max_per_img``.
        max_detections: number of rows; None is ``max_per_img``.
        names, about: see `FinalOutputs`.
    """

    def __init__(
        self,
        model: nn.Module,
        test_cfg: Mapping[str, Any],
        max_detections: int | None,
        names: Sequence[str] = BOX_OUTPUTS,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        iou = float(test_cfg["nms"]["iou_threshold"])
        thresholds = {"score_threshold": float(test_cfg.get("score_thr", 0.0)), "iou_threshold": iou}
        super().__init__(model, names, thresholds, {"boxes": "xyxy", "nms_iou": iou, **(about or {})})
        self.limit = int(max_detections or test_cfg["max_per_img"])


class DenseOutputs(BoxOutputs):
    """Detections of a one-stage head with priors at each position, such as RetinaNet and ATSS."""

    def forward(
        self,
        image: Tensor,
        size: Sequence[int],
        original: Sequence[int],
        score_threshold: Tensor,
        iou_threshold: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels and counts."""
        head = self.model.bbox_head
        cfg = head.test_cfg
        outs = head(self.model.extract_feat(image))
        maps, deltas, factors = outs[0], outs[1], outs[2] if len(outs) > 2 else [None] * len(outs[0])
        sizes = [level.shape[-2:] for level in maps]
        all_priors = head.prior_generator.grid_priors(sizes, dtype=image.dtype, device=image.device)
        classes = head.cls_out_channels if head.use_sigmoid_cls else head.cls_out_channels - 1
        found = []
        for level, delta, factor, priors in zip(maps, deltas, factors, all_priors, strict=True):
            logits = level_rows(level, head.cls_out_channels)
            scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
            values, pairs = top_scores(scores.flatten(1), cfg.get("nms_pre", -1))
            index, labels = pairs // classes, pairs % classes
            values = torch.where(values > score_threshold, values, -1.0)
            if factor is not None:
                values = torch.where(
                    values > 0, values * gather_rows(level_rows(factor, 1)[..., 0], index).sigmoid(), -1.0
                )
            rows = gather_rows(level_rows(delta, head.bbox_coder.encode_size), index)
            found.append((rows, priors[index], values, labels))
        rows, priors, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes = decode_boxes(head.bbox_coder, priors, rows, size)
        scores = drop_small(boxes, scores, cfg.get("min_bbox_size", -1))
        found, *others = suppress(boxes, scores, labels, iou_threshold, self.limit)
        return scale_boxes(found, size, original), *others


def level_rows(level: Tensor, channels: int) -> Tensor:
    """Return a map ``[B, A * channels, h, w]`` as ``[B, h * w * A, channels]``."""
    batch = level.shape[0]
    return level.permute(0, 2, 3, 1).reshape(batch, -1, channels)


def decode_boxes(coder: Any, priors: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
    """Return the boxes ``[B, N, 4]`` for priors ``[B, N, d]`` and deltas ``[B, N, e]``, clipped to the image."""
    flat = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, deltas.shape[-1]), max_shape=None)
    boxes = getattr(flat, "tensor", flat).reshape(*deltas.shape[:-1], 4)
    return clip_boxes(boxes, size) if getattr(coder, "clip_border", True) else boxes


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip boxes ``[..., 4]`` to an image of (height, width)."""
    x, y = boxes[..., 0::2].clamp(min=0), boxes[..., 1::2].clamp(min=0)
    x, y = x.minimum(x.new_tensor(1.0) * size[1]), y.minimum(y.new_tensor(1.0) * size[0])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def drop_small(boxes: Tensor, scores: Tensor, least: float) -> Tensor:
    """Return the scores with -1 for boxes whose width or height does not exceed `least`, unless it is negative."""
    if least < 0:
        return scores
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.where((sides > least).all(-1), scores, -1.0)


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply non-maximum suppression within each class, and return the best boxes, scores, labels and counts.

    Args:
        boxes: ``[B, N, 4]``.
        scores: ``[B, N]``; rows with a score below 0 are ignored.
        labels: ``[B, N]``.
        iou_threshold: scalar.
        limit: number of rows of the result.
    """
    # boxes of different classes are moved apart, as in mmcv
    valid = scores > 0
    span = torch.where(valid[..., None], boxes, 0.0).flatten(1).amax(1) + 1
    moved = boxes + (labels.to(boxes.dtype) * span[:, None])[..., None]
    keep = nms_mask(moved, scores, iou_threshold, limit)
    return best_rows(torch.where(keep, scores, -1.0), limit, boxes, labels)


def best_rows(scores: Tensor, limit: int, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, scores, labels and counts of the rows with the best scores; those below 0 are padding."""
    values, index = top_scores(scores, limit)
    valid = values > 0
    boxes = torch.where(valid[..., None], gather_rows(boxes, index), 0.0)
    labels = torch.where(valid, gather_rows(labels, index), -1)
    return boxes, torch.where(valid, values, 0.0), labels, valid.sum(1)
