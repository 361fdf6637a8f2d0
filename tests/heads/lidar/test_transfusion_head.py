"""The TransFusion head: names of the published checkpoint, proposals, attention, decoding, learning."""

import math

import pytest
import torch
from fixtures.scatterformer_names import head_shapes
from torch import nn

from visionattn.heads.lidar.decoding import Decoding
from visionattn.heads.lidar.rotated_boxes import iou_3d
from visionattn.heads.lidar.targets import BEVGrid
from visionattn.heads.lidar.transfusion_head import TransFusionHead

GRID = BEVGrid.of([-8.0, -4.0, -2.0, 8.0, 4.0, 2.0], [0.2, 0.2, 0.5], 2)
SIZE = (20, 40)
SMALL = dict(hidden_channels=16, num_heads=2, ffn_channels=24, branch_channels=16)
BOXES = torch.tensor([[1.0, 2, 0.5, 4, 2, 1.5, 0.7], [-5, -3, 0, 1, 0.8, 1.8, -2], [6, -2, 0, 4, 2, 1, 2]])
LABELS = torch.tensor([0, 1, 0])


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    head = TransFusionHead(128, 10, GRID, velocity=True)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == head_shapes()


def test_proposals_are_peaks_except_of_small_classes():
    head = TransFusionHead(4, 3, GRID, num_proposals=6, small_classes=[2], **SMALL)
    heat = torch.full((1, 3, 6, 8), 0.01)
    heat[0, 0, 2, 3], heat[0, 0, 2, 4] = 0.9, 0.8  # the second is beside the first
    heat[0, 1, 0, 5] = 0.95  # on the border
    heat[0, 2, 0, 5], heat[0, 2, 0, 6], heat[0, 2, 3, 3] = 0.7, 0.6, 0.5
    scores, labels, cells = head._proposals(heat)
    assert labels[0, :4].tolist() == [0, 2, 2, 2]
    assert cells[0, :4].tolist() == [[3, 2], [5, 0], [6, 0], [3, 3]]
    assert scores[0].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5, 0.01, 0.01])


def test_more_proposals_than_cells_and_maps_below_the_window():
    head = TransFusionHead(4, 1, GRID, num_proposals=50, **SMALL).eval()
    (out,) = head(torch.randn(1, 4, 2, 5))
    assert out["center"].shape == (1, 2, 10)
    assert head.predict([out])[0].boxes.shape == (0, 7)  # no cell has a full window


@pytest.mark.parametrize("radius", [0, 2, 8])
def test_neighborhoods_as_torch_attends_to_gathered_cells(radius):
    """Each query attends to the clamped window around its cell, and to no other query."""
    torch.manual_seed(0)
    layer = TransFusionHead(4, 2, GRID, query_radius=radius, **SMALL).decoder.double().eval()
    features = torch.randn(1, 16, 5, 7).double()
    query, cells = torch.randn(1, 4, 16).double(), torch.tensor([[[0, 0], [6, 4], [3, 2], [6, 1]]])
    got = layer(query, features, cells)

    def embed(module, x, y):
        return module(torch.tensor([[[x + 0.5, y + 0.5]]]).double())[0, 0]

    for number, (column, row) in enumerate(cells[0].tolist()):
        q = query[0, number] + embed(layer.self_posembed, column, row)
        x = layer.norm1(query[0, number] + layer.self_attn(*[q.view(1, 1, -1)] * 3)[0][0, 0])
        keys = []
        for y in range(row - radius, row + radius + 1):
            for x_ in range(column - radius, column + radius + 1):
                r, c = min(max(y, 0), 4), min(max(x_, 0), 6)
                keys.append(features[0, :, r, c] + embed(layer.cross_posembed, c, r))
        keys = torch.stack(keys)[None]
        q = (x + embed(layer.self_posembed, column, row)).view(1, 1, -1)
        x = layer.norm2(x + layer.multihead_attn(q, keys, keys)[0][0, 0])
        x = layer.norm3(x + layer.linear2(layer.linear1(x).relu()))
        assert torch.allclose(got[0, number], x, atol=1e-10)


def test_without_a_radius_as_torchs_attention():
    torch.manual_seed(0)
    layer = TransFusionHead(4, 2, GRID, query_radius=None, **SMALL).decoder.eval()
    features, query, cells = torch.randn(2, 16, 5, 7), torch.randn(2, 4, 16), torch.randint(5, (2, 4, 2))
    got = layer(query, features, cells)
    where = layer.self_posembed(cells + 0.5)
    x = query + where
    x = layer.norm1(query + layer.self_attn(x, x, x)[0])
    grid = torch.tensor([[c + 0.5, r + 0.5] for r in range(5) for c in range(7)]).expand(2, -1, -1)
    keys = features.flatten(2).transpose(1, 2) + layer.cross_posembed(grid)
    x = layer.norm2(x + layer.multihead_attn(x + where, keys, keys)[0])
    x = layer.norm3(x + layer.linear2(layer.linear1(x).relu()))
    assert torch.allclose(got, x, atol=1e-5)


def outputs_of(boxes, labels, classes=2, scores=0.8, iou=1.0, velocity=None):
    """Proposals that say exactly what is in ``boxes``."""
    count = len(boxes)
    logit = math.log(0.9 / 0.1)
    out = {
        "center": GRID.to_cells(boxes[:, :2]).T[None], "height": boxes[:, 2].view(1, 1, -1),
        "dim": boxes[:, 3:6].log().T[None], "rot": torch.stack([boxes[:, 6].sin(), boxes[:, 6].cos()])[None],
        "iou": torch.full((1, 1, count), iou), "heatmap": torch.full((1, classes, count), -logit),
        "query_labels": labels[None], "query_scores": torch.full((1, count), scores),
        "dense_heatmap": torch.full((1, classes, *SIZE), -9.0),
    }  # fmt: skip
    out["heatmap"][0, labels, torch.arange(count)] = logit
    if velocity is not None:
        out["vel"] = velocity.T[None]
    return [out]


def test_boxes_velocities_and_scores():
    velocity = torch.arange(6.0).view(3, 2)
    head = TransFusionHead(4, 2, GRID, velocity=True, decoding=Decoding(rectify=0.5, nms_iou=1.0), **SMALL)
    (found,) = head.predict(outputs_of(BOXES, LABELS, iou=0.2, velocity=velocity))
    best = iou_3d(found.boxes, BOXES).argmax(1)
    assert sorted(best.tolist()) == [0, 1, 2]
    assert torch.equal(found.labels, LABELS[best])
    assert torch.allclose(found.boxes[:, :6], BOXES[best, :6], atol=1e-5)
    assert torch.allclose((found.boxes[:, 6] - BOXES[best, 6]).cos(), torch.ones(3))
    assert torch.allclose(found.velocity, velocity[best])
    assert found.scores.tolist() == pytest.approx([(0.9 * 0.8 * 0.6) ** 0.5] * 3)


def test_only_classes_with_a_threshold_are_suppressed():
    boxes = BOXES[[0, 0, 1, 1]] + torch.tensor([0.0, 0.1, 0.0, 0.05])[:, None] * torch.eye(7)[0]
    head = TransFusionHead(4, 2, GRID, decoding=Decoding(nms_iou=(1.0, 0.175), max_boxes=1), **SMALL)
    (found,) = head.predict(outputs_of(boxes, torch.tensor([0, 0, 1, 1])))
    assert sorted(found.labels.tolist()) == [0, 0, 1]


def test_perfect_proposals_have_little_loss_and_unknown_velocities_none():
    velocity = torch.tensor([[1.0, 0], [math.nan, math.nan], [0, 2]])
    head = TransFusionHead(4, 2, GRID, velocity=True, loss=dict(code_weights=[1.0] * 8 + [0.2] * 2), **SMALL)
    outputs = outputs_of(BOXES, LABELS, velocity=torch.tensor([[1.0, 0], [7, 7], [0, 3]]))
    losses = head.loss(outputs, [BOXES], [LABELS], [velocity])
    # Only the second velocity of the third box is wrong, by 1.
    assert float(losses["loss_bbox"]) == pytest.approx(0.25 * 0.2 / 3, rel=1e-3)
    assert float(losses["loss_iou"]) == pytest.approx(0, abs=1e-3)
    assert float(losses["loss_diou"]) == pytest.approx(0, abs=1e-3)
    p = 0.1  # of each logit, the focal loss of a score that is off by 0.1
    expected = -(3 * 0.25 + 3 * 0.75) * p**2 * math.log(1 - p) / 3
    assert float(losses["loss_cls"]) == pytest.approx(expected, rel=1e-3)
    # A proposal for each object and as many others: the closest ones are assigned in any order.
    far = BOXES + torch.tensor([0.7, 0.7, 0.3, 0, 0, 0, 1.0])
    both = outputs_of(torch.cat([far, BOXES]), LABELS.repeat(2), velocity=torch.zeros(6, 2))
    mixed = head.loss(both, [BOXES], [LABELS])
    assert float(mixed["loss_diou"]) == pytest.approx(0, abs=1e-3)


def test_frames_without_objects_and_more_objects_than_proposals():
    torch.manual_seed(0)
    head = TransFusionHead(4, 2, GRID, num_proposals=2, **SMALL)
    outputs = head(torch.randn(2, 4, *SIZE))
    losses = head.loss(outputs, [BOXES[:0], BOXES], [LABELS[:0], LABELS])
    assert set(losses) == {"loss_heatmap", "loss_cls", "loss_bbox", "loss_iou", "loss_diou"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    unused = {name for name, p in head.named_parameters() if p.grad is None}
    assert unused == set()
    none = head.loss(head(torch.randn(2, 4, *SIZE)), [BOXES[:0]] * 2, [LABELS[:0]] * 2)
    assert [none[name].item() for name in ("loss_bbox", "loss_iou", "loss_diou")] == [0, 0, 0]
    assert none["loss_cls"].item() > 0
    sum(none.values()).backward()


def test_bfloat16_autocast():
    torch.manual_seed(0)
    head = TransFusionHead(4, 2, GRID, num_proposals=8, dropout=0.0, **SMALL)
    x = torch.randn(1, 4, *SIZE)
    plain = head.loss(head(x), [BOXES], [LABELS])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (outputs,) = half_outputs = head(x)
        half = head.loss(half_outputs, [BOXES], [LABELS])
    assert outputs["center"].dtype == torch.float32
    for name, value in plain.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(value.item(), rel=0.2, abs=0.2), name


def test_it_learns_one_map():
    torch.manual_seed(0)
    head = TransFusionHead(
        6, 2, GRID, num_proposals=12, query_radius=3, dropout=0.0, decoding=Decoding(nms_iou=0.2), **SMALL
    )
    for module in head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    x = torch.randn(1, 6, *SIZE)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head.loss(head(x), [BOXES], [LABELS]).values()).backward()
        optimizer.step()
    (found,) = head.eval().predict(head(x))
    good = found.scores > 0.3
    assert iou_3d(BOXES, found.boxes[good]).amax(1).min() > 0.6


def test_what_does_not_fit_is_refused():
    for options, message in (
        (dict(peak_size=2), "`peak_size` must be an odd number"),
        (dict(small_classes=[3]), r"`small_classes` must be labels in 0\.\.2"),
        (dict(hidden_channels=10, num_heads=4), "multiple of `num_heads`"),
        (dict(query_radius=-1), "`query_radius` must be at least 0"),
        (dict(num_proposals=0), "`num_proposals` must be at least 1"),
        (dict(decoding=Decoding(nms_iou=(0.5, 0.5))), "`nms_iou` must have one value for each of 3 classes"),
        (dict(decoding=Decoding(rectify=0.5), iou=False), "without the IoU branch"),
    ):
        with pytest.raises(ValueError, match=message):
            TransFusionHead(4, 3, GRID, **options)
    head = TransFusionHead(4, 2, GRID, loss=dict(code_weights=[1.0]), **SMALL)
    with pytest.raises(ValueError, match="`code_weights` must be 8 numbers"):
        head.loss(outputs_of(BOXES, LABELS), [BOXES], [LABELS])
