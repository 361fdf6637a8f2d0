"""Relevance propagation: recordings of the authors' layers, conservation in whole networks, and rules by hand."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

import visionattn  # noqa: F401  (registers the models)
from visionattn.inference.explain.relevance import PUBLISHED, propagate_relevance, relevance_heatmap


def network(cfg, size):
    """The layers of a fixture."""
    layers, channels = [], 3
    for kind, *numbers in cfg["features"]:
        if kind == "conv":
            out, kernel, stride, padding = numbers
            layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            channels = out
        else:
            layers.append(nn.MaxPool2d(*numbers))
    layers.append(nn.Flatten())
    width = nn.Sequential(*layers)(torch.zeros(size)).shape[1]
    for number, out in enumerate(cfg["classifier"]):
        layers += [*([nn.ReLU()] if number else []), nn.Linear(width, out)]
        width = out
    return nn.Sequential(*layers).eval()


def test_recordings(shared_dir):
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    files = sorted((shared_dir / "parity" / "relevance").glob("lrp_*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        model = network(record["meta"]["cfg"], record["input_shape"])
        model.load_state_dict(fill.official_state_dict(record))
        found = propagate_relevance(model, fill.fixture_input(record), rule=PUBLISHED)
        expected = record["relevance"]
        torch.testing.assert_close(found.logits, record["logits"], rtol=1e-5, atol=1e-5)
        assert torch.equal(found.labels, record["label"])
        torch.testing.assert_close(found.map, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        heat = (relevance_heatmap(found.map) * 255).round()
        assert (heat - record["heatmap_uint8"].float()).abs().max() <= 1


NETWORKS = {
    "resnet18": {},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"depth": 3, "img_size": 64},
    "dinat_mini": {"depths": (1, 1, 2, 1)},
    "biformer_tiny": {"depths": (1, 1, 1, 1), "num_regions": 2, "topks": (1, 2, 3, -2)},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_z_rule_distributes_the_whole_logit(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **NETWORKS[name]).eval()
    for parameter in model.parameters():  # timm's initial biases are zero, and layer scales close to it
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = propagate_relevance(model, images, torch.tensor([3, 5]))
    torch.testing.assert_close(found.conservation, torch.ones(2), rtol=2e-3, atol=2e-3)
    assert found.map.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(images), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("rule", ["z+", "alpha-beta"])
def test_rules_in_which_biases_take_nothing(rule):
    """From the logit to the inputs of the first layer; the image itself has negative values."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    found = propagate_relevance(model, torch.rand(2, 3, 12, 16), rule=rule)
    torch.testing.assert_close(found.conservation, torch.ones(2), rtol=1e-3, atol=1e-3)
    assert found.absorbed.abs().max() == 0
    if rule == "z+":
        sign = found.logits.amax(1).sign()[:, None, None, None]
        assert (found.map * sign >= 0).all()


def test_one_layer_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
    model[1].weight.data = torch.tensor([[2.0, -1.0, 0.5]])
    model[1].bias.data = torch.tensor([0.5])
    x = torch.tensor([1.0, 2.0, -4.0]).view(1, 1, 1, 3)  # 2 - 2 - 2 + 0.5 = -1.5

    def shares(**options):
        return propagate_relevance(model, x, **options).map.flatten()

    torch.testing.assert_close(shares(rule="z"), torch.tensor([2.0, -2.0, -2.0]))
    assert propagate_relevance(model, x).absorbed.item() == pytest.approx(0.5)
    ratio = 1.5 / 1.75
    torch.testing.assert_close(shares(rule="epsilon", epsilon=0.25), torch.tensor([2.0, -2.0, -2.0]) * ratio)
    torch.testing.assert_close(shares(rule="alpha-beta", alpha=2), torch.tensor([-3.0, 0.75, 0.75]))
    x = x.abs()  # 2 - 2 + 2 + 0.5 = 2.5
    torch.testing.assert_close(shares(rule="z+"), torch.tensor([2.0, 0.0, 2.0]) * 2.5 / 4)


def test_wrong_arguments():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"`rule` must be one of .* got 'w'"):
        propagate_relevance(model, x, rule="w")
    with pytest.raises(ValueError, match=r"`alpha` must be at least 1, got 0\.5"):
        propagate_relevance(model, x, rule="alpha-beta", alpha=0.5)
    with pytest.raises(ValueError, match=r"must be \[B, classes\], got shape \[1, 3, 2, 2\]"):
        propagate_relevance(nn.ReLU(), x)
