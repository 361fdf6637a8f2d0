import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionattn.heads.localization.cam import CAMHead, grad_cam


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = CAMHead(6, 3).double()
    nn.init.normal_(head.classifier.bias)
    return head


def test_logits_are_those_of_a_linear_classifier_of_the_mean(head):
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    output = head([torch.zeros(1), features])
    expected = F.linear(features.mean((2, 3)), head.classifier.weight[:, :, 0, 0], head.classifier.bias)
    assert torch.allclose(output.logits, expected)
    labels = torch.tensor([2, 0])
    maps = head.maps(output, labels)
    assert maps.shape == (2, 1, 4, 5)
    by_weights = (head.classifier.weight[labels, :, 0, 0][..., None, None] * features).sum(1, keepdim=True)
    assert torch.allclose(maps, by_weights)
    loss = head.loss(output, labels)["loss_cls"]
    assert loss.item() == pytest.approx(F.cross_entropy(output.logits, labels).item(), rel=1e-6)


def test_grad_cam_of_the_last_map_is_its_positive_activation(head):
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    output, labels = head([features]), torch.tensor([1, 2])
    expected = head.maps(output, labels).relu() / 20  # the mean over 4 x 5 places has that gradient
    assert torch.allclose(grad_cam(features, output.logits, labels), expected)


def test_grad_cam_of_an_earlier_map():
    torch.manual_seed(0)
    head, later = CAMHead(6, 3), nn.Conv2d(4, 6, 2, 2)
    early = torch.randn(1, 4, 8, 8, requires_grad=True)
    output = head([early, later(early)])
    found = grad_cam(early, output.logits, torch.tensor([1]))
    gradient = torch.autograd.grad(output.logits[0, 1], early)[0]
    assert torch.allclose(found, (gradient.mean((2, 3), keepdim=True) * early).sum(1, keepdim=True).clamp(min=0))


def test_wrong_number_of_classes_is_named():
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        CAMHead(4, 0)
