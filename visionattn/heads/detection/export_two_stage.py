"""Final outputs of two-stage detectors with a region proposal network, for export."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.heads.detection.export import (
    BOX_OUTPUTS,
    BoxOutputs,
    decode_boxes,
    drop_small,
    level_rows,
    suppress,
)
from visionattn.inference.export.masks import paste_masks
from visionattn.inference.export.outputs import gather_rows, scale_boxes
from visionattn.kernels.selection import pyramid_roi_align, top_scores

__all__ = ["TwoStageOutputs"]


class TwoStageOutputs(BoxOutputs):
    """Detections of Faster R-CNN, Mask R-CNN and their cascades.

    With a mask head there is the output ``masks``: probabilities within the boxes, ``[B, K, h, w]``, or, pasted into
    the image, uint8 ``[B, K, H, W]``.

    Args:
        model: the detector.
        test_cfg: see `BoxOutputs`; also ``mask_thr_binary``.
        max_detections: see `BoxOutputs`.
        pasted: paste the masks.
    """

    def __init__(
        self, model: nn.Module, test_cfg: Mapping[str, Any], max_detections: int | None, pasted: bool = False
    ) -> None:
        masks = bool(getattr(model.roi_head, "with_mask", False))
        names = (*BOX_OUTPUTS, "masks") if masks else BOX_OUTPUTS
        about = {
            "masks": "pasted" if pasted else "boxes",
            "mask_threshold": float(test_cfg.get("mask_thr_binary", 0.5)),
        }
        super().__init__(model, test_cfg, max_detections, names, about if masks else None)
        self.masks, self.pasted = masks, pasted

    def forward(
        self,
        image: Tensor,
        size: Sequence[int],
        original: Sequence[int],
        score_threshold: Tensor,
        iou_threshold: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels, counts and masks."""
        maps = self.model.extract_feat(image)
        proposals, used = self._proposals(maps, size)
        boxes, scores = self._regions(maps, proposals, size)
        batch, _, classes = scores.shape
        scores = torch.where((scores > score_threshold) & used[..., None], scores, -1.0).flatten(1)
        labels = torch.arange(classes, device=scores.device).repeat(scores.shape[1] // classes)
        labels = labels[None].expand(batch, -1)
        boxes, scores, labels, count = suppress(boxes.flatten(1, 2), scores, labels, iou_threshold, self.limit)
        found = scale_boxes(boxes, size, original), scores, labels, count
        if not self.masks:
            return found
        masks = self._mask_probabilities(maps, boxes, labels)
        if self.pasted:
            masks = paste_masks(masks, found[0], original) >= self.about["mask_threshold"]
            masks = (masks & (scores > 0)[..., None, None]).to(torch.uint8)
        return *found, masks

    def _proposals(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the proposals ``[B, P, 4]``, and which rows are used, bool ``[B, P]``; the others are 0."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        logits, deltas = head(maps)
        sizes = [level.shape[-2:] for level in logits]
        all_priors = head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)
        found = []
        for number, (level, delta, priors) in enumerate(zip(logits, deltas, all_priors, strict=True)):
            scores = level_rows(level, head.cls_out_channels)
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
            values, index = top_scores(scores[..., 0], cfg.get("nms_pre", -1))
            rows = gather_rows(level_rows(delta, head.bbox_coder.encode_size), index)
            found.append((rows, priors[index], values, torch.full_like(index, number)))
        rows, priors, scores, levels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes = decode_boxes(head.bbox_coder, priors, rows, size)
        scores = drop_small(boxes, scores, cfg.get("min_bbox_size", -1))
        iou = torch.tensor(float(cfg.nms["iou_threshold"]))
        found, scores, *_ = suppress(boxes, scores, levels, iou, int(cfg.max_per_img))
        return found, scores > 0

    def _regions(self, maps: Sequence[Tensor], proposals: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return boxes ``[B, P, C, 4]`` and scores ``[B, P, C]``."""
        roi_head = self.model.roi_head
        heads, extractors = roi_head.bbox_head, roi_head.bbox_roi_extractor
        stages = len(heads) if isinstance(heads, nn.ModuleList) else 1
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        extractors = extractors if isinstance(extractors, nn.ModuleList) else [extractors]
        batch, count = proposals.shape[:2]
        total, boxes = 0.0, proposals
        for stage, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            logits, deltas = head(self._features(extractor, maps, regions(boxes)))
            logits, deltas = logits.reshape(batch, count, -1), deltas.reshape(batch, count, -1, 4)
            total = total + logits
            if stage < stages - 1:
                if not head.reg_class_agnostic:
                    best = logits[..., :-1].argmax(-1)
                    deltas = deltas.gather(2, best[..., None, None].expand(-1, -1, 1, 4))
                boxes = decode_boxes(head.bbox_coder, boxes, deltas[:, :, 0], size)
        scores = (total / stages).softmax(-1)[..., :-1]
        classes = deltas.shape[2]
        rois = boxes[:, :, None].expand(-1, -1, classes, -1)
        found = decode_boxes(heads[-1].bbox_coder, rois, deltas, size)
        return found.expand(-1, -1, scores.shape[-1], -1), scores

    def _features(self, extractor: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return the features ``[N, C, h, w]`` of regions ``[N, 5]``: number of the image and box."""
        layers, maps = extractor.roi_layers, maps[: extractor.num_inputs]
        levels = extractor.map_roi_levels(rois, len(maps))
        layer = layers[0]
        scales = [each.spatial_scale for each in layers]
        return pyramid_roi_align(
            maps, rois, levels, scales, layer.output_size, layer.sampling_ratio, bool(layer.aligned)
        )

    def _mask_probabilities(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the masks ``[B, K, h, w]`` of the classes of the boxes, averaged over the stages of a cascade.

        Only the rows with a detection are computed, and the first row, so that there is always one; the others are 0.
        """
        roi_head = self.model.roi_head
        heads, extractors = roi_head.mask_head, roi_head.mask_roi_extractor
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        extractors = extractors if isinstance(extractors, nn.ModuleList) else [extractors]
        used = labels.flatten() >= 0
        used = torch.cat([torch.ones_like(used[:1]), used[1:]])
        rows = used.nonzero()[:, 0]
        rois, labels_of_rows = regions(boxes)[rows], labels.flatten()[rows]
        total = 0.0
        for head, extractor in zip(heads, extractors, strict=True):
            total = total + head(self._features(extractor, maps, rois)).sigmoid()
        masks = total / len(heads)
        side = masks.shape[-2:]
        if masks.shape[1] > 1:
            index = labels_of_rows.clamp(min=0).reshape(-1, 1, 1, 1).expand(-1, 1, *side)
            masks = masks.gather(1, index)
        every = masks.new_zeros(labels.numel(), *side)
        return every.index_put((rows,), masks[:, 0]).reshape(*labels.shape, *side)


def regions(boxes: Tensor) -> Tensor:
    """Return boxes ``[B, N, 4]`` as ``[B * N, 5]``, with the number of the image before each box."""
    batch, count = boxes.shape[:2]
    index = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(-1, count, 1)
    return torch.cat([index, boxes], -1).reshape(-1, 5)
