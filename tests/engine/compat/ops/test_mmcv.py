"""mmcv's own Python on top of the stand-in, in a fresh process: import, forward, backward.

The operators' numbers are tested elsewhere; here each wrapper must reach its operator with the arguments it
expects, and give what torch gives where the operation reduces to one of torch's.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

PROGRAM = """
import sys
import torch
import torch.nn.functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
from visionattn.engine.compat import ops
assert ops.install() and not ops.is_compiled()
import mmdet.models, mmseg.models
from mmcv import ops as mo
from mmcv.cnn import build_conv_layer
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as AttnOnCuda
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv.utils import collect_env
import torchvision
close = torch.testing.assert_close

def backward(output, *inputs):
    grads = torch.autograd.grad(output.square().sum(), inputs)
    for tensor, grad in zip(inputs, grads):
        assert grad.shape == tensor.shape and grad.isfinite().all() and grad.abs().sum() > 0
    return grads

def leaf(*shape):
    return torch.randn(shape, requires_grad=True)

boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
scores = torch.tensor([0.6, 0.9, 0.5])
dets, keep = mo.nms(boxes, scores, 0.5)
assert keep.tolist() == [1, 2] and dets.shape == (2, 5)
assert mo.nms(boxes, scores, 0.5, score_threshold=0.55)[1].tolist() == [1]
dets, keep = mo.nms(boxes.numpy(), scores.numpy(), 0.5, offset=1)
assert keep.tolist() == [1, 2]
dets, keep = mo.batched_nms(boxes, scores, torch.tensor([0, 1, 0]), dict(type="nms", iou_threshold=0.5))
assert keep.tolist() == [1, 0, 2]
dets, keep = mo.batched_nms(boxes, scores, torch.tensor([0, 0, 0]), dict(type="soft_nms", iou_threshold=0.5))
assert sorted(keep.tolist()) == [0, 1, 2] and keep[0] == 1
for method in ("naive", "linear", "gaussian"):
    dets, keep = mo.soft_nms(boxes, scores, 0.5, method=method)
    assert dets.shape == (len(keep), 5) and keep[0] == 1
assert [g.tolist() for g in mo.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.5)] == [[1, 0], [2]]
rotated = torch.tensor([[5., 5, 10, 10, 0], [6, 6, 10, 10, 0.01], [25, 25, 10, 10, 1]])
assert mo.nms_rotated(rotated, scores, 0.5)[1].tolist() == [1, 2]
assert mo.nms_rotated(rotated, scores, 0.5, labels=torch.tensor([0., 1, 0]))[1].tolist() == [1, 0, 2]
close(mo.box_iou_rotated(rotated, rotated, clockwise=False).diagonal(), torch.ones(3))
quads = torch.tensor([[0., 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]])
close(mo.box_iou_quadri(quads, quads), torch.tensor([[1, 1 / 3], [1 / 3, 1]]))
assert mo.nms_quadri(quads, scores[:2], 0.3)[1].tolist() == [1]
close(mo.bbox_overlaps(boxes, boxes), mo.bbox._bbox_overlaps_cpu(boxes, boxes))

image = leaf(2, 4, 8, 8)
rois = torch.tensor([[0., 0, 0, 8, 8], [1, 2, 2, 6, 6]])
whole = mo.RoIAlign(8, sampling_ratio=1)(image, rois)
close(whole[0], image[0])
for layer in (mo.RoIAlign(2), mo.RoIAlign(2, pool_mode="max"), mo.RoIAlign((2, 3), 1.0, 2, aligned=False),
              mo.RoIPool(2), mo.DeformRoIPool(2), mo.DeformRoIPoolPack(2, 4),
              mo.ModulatedDeformRoIPoolPack(2, 4)):
    output = layer(image, rois)
    assert output.shape[:3] == (2, 4, 2)
    backward(output, image)
border = mo.BorderAlign(4)(image, torch.rand(2, 64, 4) * 8)
assert border.shape == (2, 1, 64, 4)
backward(border, image)

weight = leaf(6, 2, 3, 3)
offset, mask = torch.zeros(2, 36, 4, 4, requires_grad=True), torch.ones(2, 18, 4, 4, requires_grad=True)
geometry = dict(stride=2, padding=1, groups=2)
plain = F.conv2d(image, weight, **geometry)
wanted = torch.autograd.grad(plain.square().sum(), (image, weight))
deformed = mo.deform_conv2d(image, offset, weight, 2, 1, 1, 2, 2)
close(deformed, plain)
for got, want in zip(backward(deformed, image, weight, offset)[:2], wanted):
    close(got, want)
bias = leaf(6)
modulated = mo.modulated_deform_conv2d(image, offset, mask, weight, bias, 2, 1, 1, 2, 2)
close(modulated, plain + bias[:, None, None])
backward(modulated, image, offset, mask, weight, bias)
for name in ("DCN", "DCNv2", "SAC"):
    layer = build_conv_layer(dict(type=name), 4, 6, 3, padding=1)
    backward(layer(image), image, layer.weight)
small = mo.DeformConv2dPack(4, 4, 5, padding=2)(leaf(1, 4, 3, 3))  # smaller than its kernel: mmcv pads
assert small.shape == (1, 4, 3, 3)
masked = mo.MaskedConv2d(4, 5, 3, padding=1)
only = torch.zeros(1, 8, 8)
only[0, 3, 4] = 1
result = masked(image[:1], only)
close(result[0, :, 3, 4], masked(image[:1])[0, :, 3, 4])
assert result.count_nonzero() == 5

logits, labels = leaf(5, 3), torch.tensor([0, 1, 2, 3, -1])
loss = mo.SigmoidFocalLoss(2.0, 0.25)(logits, labels)
one_hot = F.one_hot(labels.clamp(min=0) + (labels < 0) * 3, 4)[:, :3].float()
close(loss, torchvision.ops.sigmoid_focal_loss(logits, one_hot, 0.25, 2.0).sum() / 5)
backward(loss, logits)
backward(mo.SigmoidFocalLoss(2.0, 0.25, torch.ones(3))(logits, labels.clamp(0, 2)), logits)
soft = mo.SoftmaxFocalLoss(0.0, 1.0)(logits[:3], labels[:3])
close(soft, F.cross_entropy(logits[:3], labels[:3]))
backward(soft, logits)

attention = mo.MultiScaleDeformableAttention(embed_dims=8, num_levels=2, num_heads=2, batch_first=True)
query, value = leaf(2, 5, 8), leaf(2, 20, 8)
shapes, starts = torch.tensor([[4, 4], [2, 2]]), torch.tensor([0, 16])
attended = attention(query, value=value, reference_points=torch.rand(2, 5, 2, 2), spatial_shapes=shapes,
                     level_start_index=starts)
backward(attended, query, value)
maps, weights = leaf(2, 20, 2, 4), leaf(2, 5, 2, 2, 3)
places = torch.rand(2, 5, 2, 2, 3, 2, requires_grad=True)
kernel = AttnOnCuda.apply(maps, shapes, starts, places, weights, 64)
python = multi_scale_deformable_attn_pytorch(maps, shapes, places, weights)
close(kernel, python)
for got, want in zip(backward(kernel, maps, places, weights), backward(python, maps, places, weights)):
    close(got, want, rtol=1e-4, atol=1e-4)

carafe = mo.CARAFEPack(4, 2)
backward(carafe(image), image, *carafe.parameters())
ones = torch.full((2, 1, 8, 8), 1.0)
close(mo.CARAFE(1, 1, 1)(image, ones), image)
close(mo.CARAFENaive(1, 1, 1)(image, ones), image)
for kind in ("collect", "distribute"):
    masks = leaf(2, 49, 4, 4)
    backward(mo.PSAMask(kind, (7, 7))(masks), masks)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
norm, reference = mo.SyncBatchNorm(4), torch.nn.BatchNorm2d(4)
reference.load_state_dict(norm.state_dict(), strict=False)
close(norm(image), reference(image))
close(norm.running_var, reference.running_var)
backward(norm(image) * torch.rand(8), image, norm.weight, norm.bias)
deep = leaf(1, 16, 4, 4)
backward(mo.CrissCrossAttention(16)(deep), deep)
corner = mo.CornerPool("top")(image)
assert corner.shape == image.shape

for dtype in (torch.float16, torch.bfloat16):
    low = image.detach().to(dtype).requires_grad_()
    backward(mo.RoIAlign(2)(low, rois.to(dtype)), low)
    shifts = offset.to(dtype), mask.to(dtype)
    backward(mo.modulated_deform_conv2d(low, *shifts, weight, bias, 2, 1, 1, 2, 2), low)
    assert mo.nms(boxes.to(dtype), scores.to(dtype), 0.5)[1].tolist() == [1, 2]
with torch.autocast("cpu", dtype=torch.bfloat16):
    backward(mo.ModulatedDeformConv2dPack(4, 4, 3, padding=1)(image), image)

assert "visionattn" in collect_env()["MMCV Compiler"]
from visionattn.errors import BackendError
try:
    mo.min_area_polygons(torch.rand(2, 18))
except BackendError as error:
    assert "min_area_polygons" in str(error)
else:
    sys.exit("an operator that is not provided must raise")
print("complete")
"""


def test_mmcv_wrappers_in_a_fresh_process():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("complete")
