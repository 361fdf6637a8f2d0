import pytest
import torch
import torch.nn.functional as F

from visionattn.heads.action.heads import JointMapHead, joint_loss
from visionattn.heads.action.masks import joint_targets


def test_mean_over_heads_cells_and_joints():
    heads = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)]
    target = torch.rand(2, 3, 4, 5).round()
    expected = sum(F.binary_cross_entropy(h.sigmoid(), target) for h in heads) / 2
    torch.testing.assert_close(joint_loss(heads, target), expected)
    torch.testing.assert_close(joint_loss(heads[0], target.bool()), F.binary_cross_entropy(heads[0].sigmoid(), target))


def test_cells_outside_of_the_picture_do_not_count():
    logits, target = torch.randn(1, 2, 3, 4), torch.rand(1, 2, 3, 4).round()
    valid = torch.tensor([[[1, 1, 0], [1, 1, 0]]]).bool()
    torch.testing.assert_close(joint_loss(logits, target, valid), joint_loss(logits[:, :, :2], target[:, :, :2]))
    nothing = joint_loss(logits.requires_grad_(), target, torch.zeros(1, 2, 3))
    assert nothing.item() == 0
    nothing.backward()


def test_half_precision_does_not_overflow():
    assert joint_loss(torch.full((1, 2), 60000.0).half(), torch.zeros(1, 2)).isfinite()


def test_head_learns_where_joints_are():
    """From a map that shows them; the gradient reaches the map from the first step on."""
    torch.manual_seed(0)
    points = torch.rand(8, 3, 2) * 64
    targets = torch.from_numpy(joint_targets(points.numpy(), (64, 64), 16))
    features = targets.float().permute(0, 3, 1, 2) @ torch.eye(4) + 0.1 * torch.randn(8, 3, 4, 4)
    features.requires_grad_()
    head = JointMapHead(3, 3, hidden=16)
    first = head.loss(features, targets)
    first.backward()
    assert features.grad.abs().max() > 0
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(features.detach(), targets)
        loss.backward()
        optimizer.step()
    assert loss < 0.05 < first
    assert ((head(features) > 0).permute(0, 2, 3, 1) == targets).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="`joints` must be at least 1, got 0"):
        JointMapHead(8, 0)
    with pytest.raises(ValueError, match=r"`logits` must have the shape of `targets` \(1, 3\), got \(1, 2\)"):
        joint_loss(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="`logits` must be those of at least one head"):
        joint_loss([], torch.zeros(1, 3))
