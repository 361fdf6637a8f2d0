"""The NFA head on backbones of several families."""

import pytest
import timm
import torch

import visionattn  # noqa: F401  (registers the models)
from visionattn.heads.forgery.net import ForgeryNet

TINY = dict(dims=(8, 8, 12, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))


def build(name="dinat_pico", arguments=None, levels=(0, 1, 2, 3), **options):
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True, out_indices=levels, **(arguments or {}))
    info = net.feature_info
    options = {"noise_branch": TINY, "embed_dim": 16, "residual_maps": 0, **options}
    return ForgeryNet(net, info.channels(), info.reduction(), **options)


BACKBONES = {
    "dinat_pico": dict(depths=(1, 1, 1, 1), dilations="auto"),
    "biformer_tiny": dict(depths=(1, 1, 1, 1), num_regions=4),
    "davit_tiny": dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 96, 128), num_heads=(1, 2, 3, 4)),
    "resnet10t": {},
    "regnetx_002": {},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_trains_in_every_part(name):
    levels = (1, 2, 3, 4) if name in ("resnet10t", "regnetx_002") else (0, 1, 2, 3)
    model = build(name, BACKBONES[name], levels).train()
    assert len(model.guided) == 4
    image, mask = torch.randn(2, 3, 100, 130), torch.zeros(2, 1, 100, 130)
    mask[0, :, :50] = 1
    output = model(image)
    assert output.mask_logits.shape == output.aux_logits.shape == mask.shape
    sum(model.losses(output, mask).values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("noise", ["features", "statistics", "highpass"])
def test_every_part_of_a_dinat_learns(noise):
    model = build(arguments=BACKBONES["dinat_pico"], noise=noise, residual_maps=4).train()
    output = model(torch.randn(2, 3, 128, 128))
    mask = torch.zeros(2, 1, 128, 128)
    mask[0, :, :64] = 1
    sum(model.losses(output, mask).values()).backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(
    "options",
    [dict(noise=None), dict(noise="dncnn", fuse_noise=False), dict(guided=False), dict(aux=False),
     dict(image_scale=0.5), dict(aux=False, fuse_noise=False), dict(label_from_mask=False), dict(compare_regions=True)],
    ids=str,
)  # fmt: skip
def test_variants(options):
    model = build(arguments=BACKBONES["dinat_pico"], **options).train()
    output = model(torch.randn(1, 3, 64, 96))
    assert output.label.shape == (1,)
    sum(model.losses(output, torch.zeros(1, 1, 64, 96)).values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model.eval()(torch.randn(1, 3, 50, 40)).mask_logits.shape == (1, 1, 50, 40)


def test_given_masks_are_obeyed():
    model = build(arguments=BACKBONES["dinat_pico"], fuse_noise=False).eval()
    image = torch.randn(1, 3, 128, 128)
    whole = [torch.ones(1, 1, n, m) for n, m in ((1024, 16), (256, 16), (64, 16), (16, 16))]
    one = [torch.zeros_like(m) for m in whole]
    for mask in one:
        mask[..., 0] = 1
    with torch.no_grad():
        assert not torch.allclose(model(image, whole).mask_logits, model(image, one).mask_logits, atol=1e-4)


def test_wrong_arguments():
    for options, match in (
        (dict(noise="x"), "`noise` must be"),
        (dict(image_scale=0.7), "`image_scale` must be .* got 0.7"),
    ):
        with pytest.raises(ValueError, match=match):
            build(**options)
    with pytest.raises(ValueError, match="must have one number for each map"):
        ForgeryNet(torch.nn.Identity(), (8, 16), (4,))


def test_copies_are_added_to_predictions_alone():
    """The probability is 1 - (1 - p) (1 - q) for that of the network, p, and of the comparison, q."""
    image = torch.nn.functional.interpolate(torch.randn(2, 3, 24, 33), (96, 130), mode="bicubic")
    image[0, :, 52:96, 72:122] = image[0, :, 4:48, 12:62]
    plain, joint = build("resnet10t", levels=(1, 2, 3, 4)), build("resnet10t", levels=(1, 2, 3, 4), copies=True)
    assert joint.state_dict().keys() == plain.state_dict().keys()
    joint.load_state_dict(plain.state_dict())
    with torch.no_grad():
        p, both = plain.eval()(image), joint.eval()(image)
    pixels, label = (logits.sigmoid() for logits in joint.copies.copies(image))
    torch.testing.assert_close(both.mask, 1 - (1 - p.mask) * (1 - pixels))
    torch.testing.assert_close(both.label, 1 - (1 - p.label) * (1 - label))
    assert label[0] > 0.9
    assert both.mask[0, :, 20:30, 25:40].min() > 0.9
    assert label[1] < 0.1
    torch.manual_seed(0)
    a = plain.train()(image).mask_logits
    torch.manual_seed(0)
    assert torch.equal(a, joint.train()(image).mask_logits)
