"""Freezing the first stages, for each family: what does not change in training, and what does."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from visionattn.engine.parts.backbone import Backbone
from visionattn.errors import ConfigError

ALL = (0, 1, 2, 3)
# name, arguments, image size, parameter prefixes of the stem and of the first two stages, those of the third
FAMILIES = {
    "dinat_pico": ({"out_indices": ALL}, ["patch_embed", "levels.0", "levels.1"], "levels.2"),
    "nat_mini": ({"out_indices": ALL, "depths": (1, 1, 1, 1)}, ["patch_embed", "levels.0", "levels.1"], "levels.2"),
    "dinat_s_tiny": ({"out_indices": ALL, "depths": (1,) * 4}, ["patch_embed", "layers.0", "layers.1"], "layers.2"),
    "biformer_tiny": (
        {"out_indices": ALL},
        ["downsample_layers.0", "stages.0", "downsample_layers.1 stages.1"],
        "downsample_layers.2",
    ),
    "biformer_stl": (
        {"out_indices": ALL},
        ["downsample_layers.0", "stages.0", "downsample_layers.1 stages.1"],
        "downsample_layers.2",
    ),
    "scatterformer_pico": ({"out_indices": (0, 1, 2), "in_chans": 3}, ["cpe", "stage1", "stage2 app"], None),
    "dinat_isotropic_small": ({"out_indices": (1, 3)}, ["patch_embed", "layers.0", "layers.1"], "layers.2"),
    "vitrpb_small": ({"out_indices": (1, 3), "img_size": 64}, ["patch_embed", "layers.0", "layers.1"], "layers.2"),
    "davit_tiny": ({"out_indices": ALL}, ["stem", "stages_0", "stages_1"], "stages_2"),
    "pose_vit_tiny_patch16_224": (
        {"out_indices": (1, 3), "img_size": 64},
        ["patch_embed cls_token pos_embed", "blocks.0", "blocks.1"],
        "blocks.2",
    ),
    "vit_tiny_patch16_224": (
        {"out_indices": (1, 3), "img_size": 64},
        ["patch_embed cls_token pos_embed", "blocks.0", "blocks.1"],
        "blocks.2",
    ),
    "resnet10t": ({"out_indices": (1, 2, 3, 4)}, ["conv1 bn1", "layer1", "layer2"], "layer3"),
    "convnext_atto": ({"out_indices": ALL}, ["stem", "stages_0", "stages_1"], "stages_2"),
    "swin_tiny_patch4_window7_224": (
        {"out_indices": ALL, "img_size": 64, "window_size": 2},
        ["patch_embed", "layers_0", "layers_1"],
        "layers_2",
    ),
}


def part(name: str) -> str:
    return name.removeprefix("net.").removeprefix("model.")


@pytest.mark.parametrize("stages", [0, 1, 2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training(family, stages):
    arguments, parts, free = FAMILIES[family]
    torch.manual_seed(0)
    backbone = Backbone(family, frozen_stages=stages, **arguments).train()
    prefixes = tuple(p for text in parts[: None if stages == "all" else stages + 1] for p in text.split())
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1) if trained else None
    for _ in range(2):
        outputs = backbone(torch.randn(2, 3, 64, 64))
        if optimizer is not None:
            optimizer.zero_grad()
            sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
            optimizer.step()
    changed = {n for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    if stages == "all":
        assert all(n.startswith("norm") for n in changed)
    else:
        wrong = [n for n in changed if part(n).startswith(prefixes)]
        assert not wrong, wrong
        expected = {n for n, p in backbone.named_parameters() if not part(n).startswith(prefixes)}
        assert expected == {n for n, p in backbone.named_parameters() if p.requires_grad}
        weights = {
            n for n, p in backbone.named_parameters() if p.requires_grad and p.ndim > 1 and p.grad.abs().sum() > 0
        }
        assert weights <= changed
        if free is not None:
            assert any(part(n).startswith(free) for n in changed)
    norms = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for name, module in norms:
        assert module.training == (stages != "all" and not part(name).startswith(prefixes)), name


def test_mistakes():
    for value in (True, 1.5, "most"):
        with pytest.raises(ConfigError, match='integer from -1, or "all"'):
            Backbone("resnet10t", frozen_stages=value)
    with pytest.raises(ConfigError, match="frozen_stages=5 must be -1 to 4"):
        Backbone("dinat_pico", frozen_stages=5)


def test_creating_the_definition_takes_no_random_numbers():
    torch.manual_seed(0)
    Backbone("convnext_atto")
    expected = torch.rand(1)
    torch.manual_seed(0)
    Backbone("convnext_atto", frozen_stages=1).layer_ids()
    assert torch.equal(torch.rand(1), expected)
