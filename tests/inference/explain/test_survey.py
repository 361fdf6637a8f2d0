"""Measures of heads over several images, and where the classes of the images come from."""

from pathlib import Path

import pytest
import timm
import torch

from visionattn.errors import ConfigError, DataError
from visionattn.inference.explain.heads import head_importance
from visionattn.inference.explain.survey import class_names, folder_labels, survey_heads


def test_survey_of_a_vit():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=2, img_size=64).eval()
    images = torch.randn(3, 1, 3, 64, 64)
    found = survey_heads(model, [(images[0], None), (images[1], 4), (images[2], None)])
    with torch.no_grad():
        predicted = model(images[:, 0]).argmax(1).tolist()
    assert found.labels.tolist() == [predicted[0], 4, predicted[2]]
    assert [(layer.name, layer.grid, layer.heads) for layer in found.layers] == [
        ("blocks.0.attn", (4, 4), 3), ("blocks.1.attn", (4, 4), 3),
    ]  # fmt: skip
    layer = found.layers[1]
    torch.testing.assert_close(layer.effects[1], head_importance(model, images[1], 4)[1])
    assert layer.maps.shape == (3, 3, 64, 64)
    torch.testing.assert_close(layer.shares.sum(1), torch.ones(3))
    torch.testing.assert_close(layer.offsets.sum((1, 2)), torch.ones(3))
    assert (layer.distance > 0).all()


def test_what_cannot_be_measured():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=64, dynamic_img_size=True).eval()
    assert survey_heads(model, [(torch.randn(1, 3, 64, 64), None)]).labels.tolist() == [-1]
    with pytest.raises(ValueError, match="must have one size"):
        survey_heads(model, [(torch.randn(1, 3, 64, 64), None), (torch.randn(1, 3, 96, 96), None)])
    with pytest.raises(ValueError, match="has no images"):
        survey_heads(model, [])
    with pytest.raises(ConfigError, match="no attention over a feature map"):
        survey_heads(timm.create_model("resnet10t").eval(), [(torch.randn(1, 3, 64, 64), None)])


def test_classes_of_images():
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    names = class_names(model, None)
    assert names[281] == "n02123045"  # tabby cat
    folder = Path("photos")
    files = [folder / "n02123045" / "a.jpg", folder / "n01440764" / "deep" / "b.jpg"]
    assert folder_labels(files, folder, names, False) == [281, 0]
    assert folder_labels([*files, folder / "c.jpg"], folder, names, False) == [None] * 3
    with pytest.raises(DataError, match=r"must be the name of its class, got 'c\.jpg'"):
        folder_labels([*files, folder / "c.jpg"], folder, names, True)
    with pytest.raises(ConfigError, match="must have 1000 names"):
        class_names(model, ["cat"])
    assert class_names(timm.create_model("resnet10t", num_classes=3), None) == ["0", "1", "2"]
