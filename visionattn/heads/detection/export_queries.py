"""Final outputs of detectors with queries, DINO and Mask2Former, for export."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionattn.heads.detection.export import BOX_OUTPUTS, best_rows, clip_boxes
from visionattn.inference.export.deformable import cell_centers
from visionattn.inference.export.outputs import FinalOutputs, gather_rows, resize_maps, scale_boxes
from visionattn.inference.export.queries import mask_boxes, mask_scores, resize_masks
from visionattn.kernels.exporting import crop_pixels
from visionattn.kernels.selection import top_scores

__all__ = ["DINOOutputs", "MaskQueryOutputs"]


class DINOOutputs(FinalOutputs):
    """Detections of DINO; outputs as of `visionattn.heads.detection.export.BoxOutputs`.

    Args:
        model: the detector, after `visionattn.inference.export.deformable.replace_deformable`.
        max_detections: number of rows; None is ``max_per_img``.
    """

    def __init__(self, model: nn.Module, max_detections: int | None = None) -> None:
        super().__init__(model, BOX_OUTPUTS, {"score_threshold": 0.0}, {"boxes": "xyxy"})
        self.limit = int(max_detections or model.test_cfg.get("max_per_img", model.num_queries))

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], score_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels and counts."""
        model, maps = self.model, self.model.extract_feat(image)
        batch = image.shape[0]
        tokens, positions, shapes = [], [], []
        for index, level in enumerate(maps):
            position = model.positional_encoding(None, input=level)
            positions.append(position.flatten(2).transpose(1, 2) + model.level_embed[index].view(1, 1, -1))
            tokens.append(level.flatten(2).transpose(1, 2))
            shapes.append(tuple(level.shape[2:]))
        ratios = image.new_ones(batch, len(maps), 2)
        memory = model.encoder(
            query=torch.cat(tokens, 1), query_pos=torch.cat(positions, 1), key_padding_mask=None,
            spatial_shapes=shapes, level_start_index=None, valid_ratios=ratios,
        )  # fmt: skip
        reference = self._references(memory, shapes)
        query = model.query_embedding.weight[None].expand(batch, -1, -1)
        states, references = model.decoder(
            query=query, value=memory, key_padding_mask=None, self_attn_mask=None, reference_points=reference,
            spatial_shapes=shapes, level_start_index=None, valid_ratios=ratios,
            reg_branches=model.bbox_head.reg_branches,
        )  # fmt: skip
        logits, boxes = model.bbox_head(states, list(references))
        classes = logits.shape[-1]
        scores, pairs = top_scores(logits[-1].sigmoid().flatten(1), self.limit)
        scores = torch.where(scores > score_threshold, scores, -1.0)
        centers = gather_rows(boxes[-1], pairs // classes)
        half = centers[..., 2:] / 2
        corners = torch.cat([centers[..., :2] - half, centers[..., :2] + half], -1)
        x, y = corners[..., 0::2] * size[1], corners[..., 1::2] * size[0]
        corners = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
        boxes = scale_boxes(clip_boxes(corners, size), size, original)
        return best_rows(scores, self.limit, boxes, pairs % classes)

    def _references(self, memory: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
        """Return the boxes of the best proposals of the encoder, ``[B, Q, 4]``."""
        model, layer = self.model, self.model.decoder.num_layers
        proposals = []
        for level, (height, width) in enumerate(shapes):
            centers = cell_centers(height, width, memory.device)
            proposals.append(torch.cat([centers, torch.full_like(centers, 0.05 * 2.0**level)], -1))
        boxes = torch.cat(proposals)[None]
        valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
        boxes = torch.where(valid, torch.log(boxes / (1 - boxes)), torch.inf)
        states = model.memory_trans_norm(model.memory_trans_fc(torch.where(valid, memory, 0.0)))
        scores = model.bbox_head.cls_branches[layer](states).amax(-1)
        deltas = model.bbox_head.reg_branches[layer](states)
        index = top_scores(scores, model.num_queries)[1]  # the model requires at least as many tokens as queries
        return (gather_rows(deltas, index) + gather_rows(boxes.expand(memory.shape[0], -1, -1), index)).sigmoid()


class MaskQueryOutputs(FinalOutputs):
    """Instances of Mask2Former.

    Outputs as of `visionattn.heads.detection.export.BoxOutputs`, with ``masks``: probabilities at the resolution of the
    model, ``[B, K, h, w]`` for the padded input, or uint8 ``[B, K, H, W]``; and ``class_scores [B, K]``: ``scores`` are
    their products with the mean probability inside of the mask.

    Args:
        model: the detector, after `visionattn.inference.export.deformable.replace_deformable`.
        max_detections: number of rows; None is ``max_per_image``.
        pasted: resize and threshold the masks.
    """

    def __init__(self, model: nn.Module, max_detections: int | None = None, pasted: bool = False) -> None:
        about = {"boxes": "xyxy", "masks": "pasted" if pasted else "queries", "mask_threshold": 0.5}
        super().__init__(model, (*BOX_OUTPUTS, "masks", "class_scores"), {"score_threshold": 0.0}, about)
        self.limit = int(max_detections or model.test_cfg.get("max_per_image", 100))
        self.pasted = pasted

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], score_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels, counts, masks and class scores."""
        head = self.model.panoptic_head
        logits, masks = (outputs[-1] for outputs in head(self.model.extract_feat(image), None))
        classes = logits.shape[-1] - 1
        best, pairs = top_scores(logits.softmax(-1)[..., :-1].flatten(1), self.limit)
        labels = pairs % classes
        best = torch.where(labels < head.num_things_classes, best, -1.0)
        masks = gather_rows(masks, pairs // classes)
        full = resize_maps(crop_pixels(resize_masks(masks, image.shape[2:]), size), size, original)
        scores = best * mask_scores(full)
        order = torch.where(scores > score_threshold, scores, -1.0)
        inside = full > 0
        boxes = mask_boxes(inside)
        index = top_scores(order, self.limit)[1]
        found = best_rows(order, self.limit, boxes, labels)
        if self.pasted:
            shown = gather_rows(inside.to(torch.uint8), index)
            shown = shown * (found[1] > 0)[..., None, None].to(torch.uint8)
        else:
            shown = gather_rows(masks, index).sigmoid()
        return *found, shown, gather_rows(best, index).clamp(min=0)
