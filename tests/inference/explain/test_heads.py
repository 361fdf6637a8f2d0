"""Importance of heads against models whose weights are set to zero."""

import pytest
import timm
import torch
from torch import nn

import visionattn  # noqa: F401  (registers the models)
from visionattn.inference.explain.heads import MEASURES, _Earlier, head_importance, predict

SMALL = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "swin_tiny_patch4_window7_224": {
        "depths": (1, 2), "img_size": 64, "window_size": 4, "num_heads": (2, 3), "embed_dim": 24,
    },
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2)},
    "dinat_pico": {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 4)},
    "biformer_tiny": {"depths": (1, 1, 1, 1), "num_regions": 2, "topks": (1, 2, 3, -2)},
}  # fmt: skip


def small(name: str, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **SMALL[name]).eval()
    for parameter in model.parameters():  # so that no layer scale hides the heads
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_measures_by_hand():
    model, image = small("vit_tiny_patch16_224"), torch.randn(1, 3, 64, 64)
    found = head_importance(model, image, label=3)
    assert [tuple(f.shape) for f in found] == [(3, 2, 3)] * 2
    with torch.no_grad():
        before, token = model(image).softmax(-1)[0], model.forward_features(image)[0, 0]
        weight = model.blocks[1].attn.proj.weight
        original = weight.clone()
        for column, parts in enumerate(([1], [0, 2])):  # the second head; all others
            weight.copy_(original)
            for head in parts:
                weight[:, head * 64 : head * 64 + 64] = 0
            after, changed = model(image).softmax(-1)[0], model.forward_features(image)[0, 0]
            mean = (before + after) / 2
            bits = [float((p * (p / mean).log2()).sum()) for p in (before, after)]
            cosine = float((token * changed).sum() / token.norm() / changed.norm())
            probability, divergence, change = found[1][1, column].tolist()
            assert probability == pytest.approx(float(before[3] - after[3]), rel=1e-3, abs=1e-6)
            assert divergence == pytest.approx(sum(bits) / 2, rel=1e-2, abs=1e-6)
            assert change == pytest.approx(1 - cosine, rel=1e-2, abs=1e-6)
            assert change > 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_reuse_of_earlier_modules_changes_nothing(name):
    model, image = small(name), torch.randn(1, 3, 64, 64)
    reference = predict(model, image)
    with torch.no_grad():
        earlier = _Earlier(model, image)
        assert len(earlier.calls) >= 2
        for index in range(len(earlier.calls)):
            with earlier.reused(index):
                features, probabilities = predict(model, image)
            torch.testing.assert_close(features, reference[0])
            torch.testing.assert_close(probabilities, reference[1])
        ran = []
        hook = model.get_submodule(earlier.calls[0].name).register_forward_hook(lambda *a: ran.append(1))
        inner = next(model.get_submodule(earlier.calls[0].name).children()).register_forward_hook(
            lambda *a: ran.append(2)
        )
        with earlier.reused(len(earlier.calls) - 1):
            predict(model, image)
        hook.remove()
        inner.remove()
        assert 2 not in ran  # the first attention was not computed again
    assert all("forward" not in vars(module) for module in model.modules())
    torch.testing.assert_close(predict(model, image)[0], reference[0])


@pytest.mark.parametrize("name", SMALL)
def test_a_head_without_values_has_no_importance(name):
    model, image = small(name), torch.randn(1, 3, 64, 64)
    last = _Earlier(model, image).calls[-1]
    projection = next(m for n, m in model.get_submodule(last.name).named_modules() if n.endswith(("proj", "wo")))
    width = projection.weight.shape[1] // last.heads
    projection.weight.data[:, width : 2 * width] = 0
    effects = head_importance(model, image)[-1]
    assert effects.shape == (last.heads, 2, len(MEASURES))
    torch.testing.assert_close(effects[1, 0], torch.zeros(3), rtol=0, atol=1e-6)
    assert (effects[0, 0].abs() > 1e-7).all()


def test_without_a_classifier_only_features_are_compared():
    model = small("dinat_pico", classes=0)
    effects = head_importance(model, torch.randn(1, 3, 64, 64), removed=["head"])
    assert effects[1].shape == (2, 1, 3)
    assert all(e[..., :2].isnan().all() and (e[..., 2] > 0).all() for e in effects)
