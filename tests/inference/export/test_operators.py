"""The operators for export: their results, and the ONNX programs of modules that use them, at several sizes."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from visionattn.heads.localization.metrics_sat import box_of_largest_region
from visionattn.inference.export import Network, export_model
from visionattn.inference.export.masks import paste_masks
from visionattn.inference.export.pooling import AdaptivePooling
from visionattn.kernels.exporting import crop_pixels, pad_end
from visionattn.kernels.regions import largest_region_box
from visionattn.kernels.selection import nms_mask, pyramid_roi_align, top_scores
from visionattn.layers import NeighborhoodAttention2d
from visionattn.layers.spatial_reduction import SpatialReductionAttention

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")), reason="needs onnx"
)


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image):
        return self.function(image)


def in_onnx(function, tmp_path, size=(12, 16)):
    """Export a function of the image, which compares the program with it, and run the program at other sizes."""
    import onnxruntime

    network = Network(Module(function).eval())
    done = export_model(network, tmp_path / "a.onnx", size, dynamic=("batch", "size"))
    assert len(done.checked) == 5
    session = onnxruntime.InferenceSession(str(done.path))
    for batch, height, width in ((1, 9, 33), (3, 40, 20)):
        image = torch.randn(batch, 3, height, width)
        for one, other in zip(network(image), session.run(None, {"image": image.numpy()}), strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-5)


def boxes_of(image):
    """Some boxes and scores that depend on the image."""
    values = image.flatten(2).transpose(1, 2)[:, :40].sigmoid() * 30
    corner = values[..., :2]
    return torch.cat([corner, corner + values[..., 1:] + 4], -1), image[:, 0].flatten(1)[:, :40].sigmoid() - 0.3


def test_top_scores_are_padded():
    values, index = top_scores(torch.tensor([[0.1, 0.5, 0.3]]), 5)
    assert index.tolist() == [[1, 2, 0, 0, 0]]
    torch.testing.assert_close(values, torch.tensor([[0.5, 0.3, 0.1, -1, -1]]))
    assert top_scores(torch.rand(2, 9), 4)[0].shape == (2, 4)


def test_suppression_is_that_of_torchvision():
    boxes, scores = boxes_of(torch.randn(3, 3, 8, 8))
    keep = nms_mask(boxes, scores, torch.tensor(0.4), 6)
    for row in range(3):
        positive = (scores[row] > 0).nonzero()[:, 0]
        kept = torchvision.ops.nms(boxes[row, positive], scores[row, positive], 0.4)[:6]
        assert keep[row].nonzero()[:, 0].tolist() == sorted(positive[kept].tolist())


def test_regions_of_a_level_are_those_of_torchvision():
    maps = [torch.randn(2, 4, 16, 16), torch.randn(2, 4, 8, 8)]
    rois = torch.tensor([[0, 1.0, 2, 20, 30], [1, 5, 5, 60, 50], [0, 0, 0, 9, 9]])
    found = pyramid_roi_align(maps, rois, torch.tensor([0, 1, 0]), [0.25, 0.125], [3, 3])
    for row, (level, scale) in enumerate(((0, 0.25), (1, 0.125), (0, 0.25))):
        expected = torchvision.ops.roi_align(maps[level], rois[row : row + 1], 3, scale, 0, True)
        torch.testing.assert_close(found[row : row + 1], expected)


def test_box_of_the_largest_region():
    maps = torch.from_numpy(np.random.default_rng(0).random((20, 17, 23))).float()
    maps = F.avg_pool2d(maps[:, None], 3, 1, 1)[:, 0]
    for threshold in (0.4, 0.5, 0.6, 2.0):
        expected = [box_of_largest_region(m, threshold) for m in maps.numpy()]
        assert largest_region_box(maps, torch.tensor(threshold)).tolist() == np.array(expected).tolist()


def test_pasted_masks_are_those_of_grid_sample():
    masks, boxes = torch.rand(2, 7, 5), torch.tensor([[3.2, 4.1, 17.9, 11.0], [-2.0, 1.0, 9.5, 30.0]])
    y, x = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        grid = torch.stack([(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)], -1) * 2 - 1
        expected = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        box = torch.tensor([x0, y0, x1, y1])
        torch.testing.assert_close(paste_masks(mask, box, (20, 24)), expected, atol=1e-5, rtol=1e-4)
        part = paste_masks(mask, box, (6, 8), torch.tensor([5, 7]))
        torch.testing.assert_close(part, expected[7:13, 5:13], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 9), (12, 18), (2, 5)])
def test_adaptive_pooling(size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(AdaptivePooling((3, 6))(x), F.adaptive_avg_pool2d(x, (3, 6)), atol=1e-6, rtol=1e-5)


@needs_onnx
@pytest.mark.parametrize(
    "function",
    [
        lambda image: top_scores(image[:, 0].flatten(1).sigmoid(), 200),
        lambda image: (nms_mask(*boxes_of(image), torch.tensor(0.4), 6).float(),),
        lambda image: crop_pixels(pad_end(image, [3, image.shape[2] + 5, image.shape[3] * 2]), (7, image.shape[3] + 1)),
        lambda image: largest_region_box(image[:, 1], torch.tensor(0.7)),
        lambda image: AdaptivePooling((3, 6))(image),
        lambda image: pyramid_roi_align(
            [image, image[:, :, ::2, ::2]],
            torch.cat([torch.zeros(8, 1), torch.arange(32.0).reshape(8, 4).cumsum(1) / 4], 1),
            torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
            [1.0, 0.5],
            [2, 3],
        ),
    ],
    ids=["top_scores", "nms_mask", "pad_crop", "largest_region", "pooling", "roi_align"],
)
def test_programs(function, tmp_path):
    in_onnx(function, tmp_path)


@needs_onnx
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "dilation": 5},  # maps smaller than 15 are padded
        {"kernel_size": 5, "dilation": "auto"},
        {
            "kernel_size": (3, 7),
            "dilation": (2, 1),
            "stride": (1, 3),
            "rel_pos_bias": False,
            "is_causal": (True, False),
        },
    ],
    ids=["dilated", "auto", "causal"],
)
def test_neighborhood_attention(options, tmp_path):
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(6, 2, **options).eval()
    expand = nn.Conv2d(3, 6, 1)
    in_onnx(lambda image: layer(expand(image).permute(0, 2, 3, 1)), tmp_path)


@needs_onnx
@pytest.mark.parametrize("reduction", [1, 2, 16], ids=["all keys", "half", "one key"])
def test_attention_to_selected_keys(reduction, tmp_path):
    """Groups and masks of keys; with a reduction of 16, maps are smaller than a cell."""
    torch.manual_seed(0)
    layer, expand = SpatialReductionAttention(8, 2, reduction).eval(), nn.Conv2d(3, 8, 1)

    def function(image):
        tokens, size = expand(image).flatten(2).transpose(1, 2), tuple(image.shape[2:])
        dense, keep = layer.forward_with_mask(tokens, size, 0.3)
        return dense, layer(tokens, size, fixed_sparse=True), layer(tokens, size, keep)

    in_onnx(function, tmp_path)
