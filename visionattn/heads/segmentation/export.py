"""Final outputs of segmentors in tensor operations, for export, and their conversion back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.errors import ConfigError
from visionattn.inference.export.outputs import FinalOutputs, resize_maps
from visionattn.inference.export.queries import panoptic_ids, resize_masks
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.kernels.exporting import crop_pixels

__all__ = ["MapOutputs", "PanopticOutputs", "QueryMapOutputs", "restore_map", "restore_panoptic"]


class MapOutputs(FinalOutputs):
    """Class maps of a segmentor of mmseg.

    Outputs: ``semantic [B, H, W]``, the class of each pixel (uint8, int32 for more than 256 classes), and
    ``probabilities [B, C, H, W]``, both for the pixels of the input image.

    Args:
        model: an ``EncoderDecoder``.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.decode_head
        mode = (model.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ConfigError(
                f"{type(model).__name__} cannot be exported with test_cfg.mode={mode!r}; set "
                "model.test_cfg.mode=whole, and cut large images into tiles (`tile`)"
            )
        if isinstance(head, nn.ModuleList):
            raise ConfigError(f"{type(model).__name__} cannot be exported: it has several decode heads in a row")
        threshold = float(getattr(head, "threshold", None) or 0.5)
        classes = int(head.out_channels)
        thresholds = {"mask_threshold": threshold} if classes == 1 else {}
        self_about = {"align_corners": bool(head.align_corners), "threshold": threshold}
        names = ("semantic", "probabilities")
        super().__init__(model, names, thresholds, self_about, {"decode_head": {"threshold": threshold}})
        self.dtype = torch.uint8 if classes <= 256 else torch.int32

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], *thresholds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the map of classes and the probabilities."""
        head, padded = self.model.decode_head, image.shape[2:]
        logits = self.logits(self.model.extract_feat(image), padded)
        logits = F.interpolate(logits, size=tuple(padded), mode="bilinear", align_corners=head.align_corners)
        logits = resize_maps(crop_pixels(logits, size), size, original, head.align_corners)
        if logits.shape[1] == 1:
            probabilities = logits.sigmoid()
            return (probabilities[:, 0] > thresholds[0]).to(self.dtype), probabilities
        return logits.argmax(1).to(self.dtype), logits.softmax(1)

    def logits(self, maps: Sequence[Tensor], padded: Sequence[int]) -> Tensor:
        """Return the logits of the head, ``[B, C, h, w]``."""
        return self.model.decode_head(maps)


class QueryMapOutputs(MapOutputs):
    """Class maps of Mask2Former in mmseg: masks of queries, weighted by their class scores."""

    def logits(self, maps: Sequence[Tensor], padded: Sequence[int]) -> Tensor:
        """Return the sum of the masks of each class, ``[B, C, H, W]``."""
        logits, masks = (outputs[-1] for outputs in self.model.decode_head(maps, None))
        masks = resize_masks(masks, padded).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", logits.softmax(-1)[..., :-1], masks)


class PanopticOutputs(FinalOutputs):
    """Panoptic segments of Mask2Former.

    Outputs: ``panoptic [B, H, W]`` (int32): label + 1000 * number for things, numbered from 1, the label for stuff, and
    the number of classes for pixels without a segment; and the queries that they are computed from:
    ``query_scores [B, Q]``, ``query_labels [B, Q]`` and ``query_masks [B, Q, h, w]`` (probabilities).

    Args:
        model: the model, after `visionattn.inference.export.deformable.replace_deformable`.
        queries: return the queries.
    """

    def __init__(self, model: nn.Module, queries: bool = True) -> None:
        head, cfg = model.panoptic_head, model.panoptic_fusion_head.test_cfg
        about = {
            "classes": head.num_classes, "things": head.num_things_classes,
            "filter_low_score": bool(cfg.get("filter_low_score", False)),
            "score_threshold": float(cfg.get("object_mask_thr", 0.8)),
            "overlap_threshold": float(cfg.get("iou_thr", 0.8)),
        }  # fmt: skip
        thresholds = {name: about[name] for name in ("score_threshold", "overlap_threshold")}
        names = ("panoptic", "query_scores", "query_labels", "query_masks") if queries else ("panoptic",)
        stand_in = {"panoptic_fusion_head": {"num_things_classes": head.num_things_classes}}
        super().__init__(model, names, thresholds, about, stand_in)

    def forward(
        self,
        image: Tensor,
        size: Sequence[int],
        original: Sequence[int],
        score_threshold: Tensor,
        overlap_threshold: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the map of segments, and the queries."""
        logits, masks = (outputs[-1] for outputs in self.model.panoptic_head(self.model.extract_feat(image), None))
        scores, labels = logits.softmax(-1).max(-1)
        full = resize_maps(crop_pixels(resize_masks(masks, image.shape[2:]), size), size, original)
        about = self.about
        found = panoptic_ids(
            scores, labels, full, about["classes"], about["things"], score_threshold, overlap_threshold,
            about["filter_low_score"],
        )  # fmt: skip
        return (found, scores, labels, masks.sigmoid()) if "query_masks" in self.names else (found,)


def restore_panoptic(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``pred_panoptic_seg`` of the original image, computed from the queries at its size if there are any."""
    if "query_masks" not in outputs:
        return RawOutput(pred_panoptic_seg=RawOutput(sem_seg=torch.from_numpy(outputs["panoptic"])[None]))
    rows, columns = geometry.resized
    scores, labels, masks = (torch.from_numpy(np.ascontiguousarray(outputs[f"query_{name}"]))[None]
                             for name in ("scores", "labels", "masks"))  # fmt: skip
    logits = torch.logit(masks, eps=1e-12).nan_to_num(neginf=-30.0, posinf=30.0)
    logits = resize_masks(logits, geometry.padded)[..., :rows, :columns]
    if geometry.image != geometry.resized:
        logits = F.interpolate(logits, geometry.image, mode="bilinear", align_corners=False)
    found = panoptic_ids(
        scores, labels, logits, about["classes"], about["things"], about["score_threshold"],
        about["overlap_threshold"], about["filter_low_score"],
    )  # fmt: skip
    return RawOutput(pred_panoptic_seg=RawOutput(sem_seg=found))


def restore_map(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``seg_logits`` and ``pred_sem_seg`` of the original image.

    The logarithm of softmax differs from the logits by the same number for all classes of a pixel, so that resizing it
    gives the same decisions as resizing the logits.
    """
    rows, columns = geometry.resized
    values = torch.from_numpy(np.ascontiguousarray(outputs["probabilities"]))[None, :, :rows, :columns]
    single = values.shape[1] == 1
    logits = torch.logit(values, eps=1e-7) if single else values.clamp(min=1e-38).log()
    if geometry.image != geometry.resized:
        align = bool(about.get("align_corners"))
        logits = F.interpolate(logits, geometry.image, mode="bilinear", align_corners=align)
    logits = logits[0]
    if single:
        logits = logits.sigmoid()
        found = (logits > float(about.get("threshold", 0.5))).long()
    else:
        found = logits.argmax(0, keepdim=True)
    return RawOutput(seg_logits=RawOutput(data=logits), pred_sem_seg=RawOutput(data=found))
