"""Selection of boxes and features with outputs of a fixed shape, as operators for `torch.export` and ONNX.

The numbers of candidates, of boxes that survive non-maximum suppression, and of boxes per level depend on the data.
These operators hide them: they return padded results or masks, so that a whole detector can be traced for any batch and
image size. torchvision computes them; `visionattn.inference.export` contains their ONNX implementations.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["nms_mask", "pyramid_roi_align", "top_scores"]

torch.library.define("visionattn::top_scores", "(Tensor scores, int k) -> (Tensor, Tensor)")
torch.library.define("visionattn::nms_mask", "(Tensor boxes, Tensor scores, Tensor iou_threshold, int limit) -> Tensor")
torch.library.define(
    "visionattn::pyramid_roi_align",
    "(Tensor[] maps, Tensor rois, Tensor levels, float[] scales, int[] output_size, int sampling_ratio, bool aligned) "
    "-> Tensor",
)


def top_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest scores of each row in descending order, and their indices.

    Args:
        scores: ``[B, N]``, at least 0.
        k: rows with fewer scores are padded with the score -1 and the index 0.

    Returns:
        Values and indices, both ``[B, k]``.
    """
    return torch.ops.visionattn.top_scores(scores, k)


def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: Tensor, limit: int) -> Tensor:
    """Return which boxes remain after non-maximum suppression within each row, bool ``[B, N]``.

    Args:
        boxes: ``[B, N, 4]`` as x1, y1, x2, y2.
        scores: ``[B, N]``; boxes with a score of 0 or less are removed.
        iou_threshold: scalar tensor; a box whose IoU with one of a higher score exceeds it is removed.
        limit: maximum number of boxes that remain in each row, those with the highest scores.
    """
    return torch.ops.visionattn.nms_mask(boxes, scores, iou_threshold, limit)


def pyramid_roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Apply RoIAlign to each region on its own level of a feature pyramid.

    Args:
        maps: feature maps ``[B, C, h, w]``, one per level.
        rois: ``[N, 5]`` as index of the image, x1, y1, x2, y2 in pixels of the image.
        levels: int64 ``[N]``, the level of each region.
        scales: size of a pixel of the image on each map, such as 1/4.
        output_size: (height, width) of the result.
        sampling_ratio: samples per bin and axis; 0 chooses it by the size of the region.
        aligned: shift the regions by half a pixel, see `torchvision.ops.roi_align`.

    Returns:
        ``[N, C, height, width]``.
    """
    scales, output_size = [float(value) for value in scales], list(output_size)
    return torch.ops.visionattn.pyramid_roi_align(
        list(maps), rois, levels, scales, output_size, sampling_ratio, aligned
    )


@torch.library.impl("visionattn::top_scores", "CompositeExplicitAutograd")
def _top_scores(scores, k):
    count = min(k, scores.shape[1])
    values, indices = scores.topk(count, dim=1)
    return F.pad(values, (0, k - count), value=-1.0), F.pad(indices, (0, k - count))


@torch.library.register_fake("visionattn::top_scores")
def _(scores, k):
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@torch.library.impl("visionattn::nms_mask", "CompositeExplicitAutograd")
def _nms_mask(boxes, scores, iou_threshold, limit):
    from torchvision.ops import nms

    keep = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(len(boxes)):
        index = (scores[row] > 0).nonzero().squeeze(1)
        keep[row, index[nms(boxes[row, index], scores[row, index], float(iou_threshold))[:limit]]] = True
    return keep


@torch.library.register_fake("visionattn::nms_mask")
def _(boxes, scores, iou_threshold, limit):
    return scores.new_empty(scores.shape, dtype=torch.bool)


@torch.library.impl("visionattn::pyramid_roi_align", "CompositeExplicitAutograd")
def _pyramid_roi_align(maps, rois, levels, scales, output_size, sampling_ratio, aligned):
    from torchvision.ops import roi_align

    out = maps[0].new_zeros(len(rois), maps[0].shape[1], *output_size)
    for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = (levels == level).nonzero().squeeze(1)
        out[rows] = roi_align(feature, rois[rows], output_size, scale, sampling_ratio, aligned)
    return out


@torch.library.register_fake("visionattn::pyramid_roi_align")
def _(maps, rois, levels, scales, output_size, sampling_ratio, aligned):
    return maps[0].new_empty(rois.shape[0], maps[0].shape[1], *output_size)
