"""Forgery models in mmengine's form."""

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.forgery.mmlab import ForgeryLocalizer, NFAViTLocalizer
from visionattn.heads.forgery.nfa_vit import NFAViT

BACKBONE = dict(type="visionattn.Backbone", model_name="dinat_pico", depths=(1, 1, 1, 1), dilations="auto")
NET = dict(
    noise_dims=(8, 16, 20, 32), noise_depths=(1, 1, 1, 1), image_dims=(8, 16, 20, 32), image_depths=(2, 1, 1, 1),
    embed_dim=16,
)  # fmt: skip


def sample(size=(64, 96), original=None, forged=True, padding=0):
    truth = torch.zeros(1, *size, dtype=torch.long)
    if forged:
        truth[:, 10:30, 10:40] = 1
    if padding:
        truth[:, :, -padding:] = 255
    found = SegDataSample(metainfo=dict(img_shape=(size[0], size[1] - padding), ori_shape=original or size))
    found.gt_sem_seg = PixelData(data=truth)
    return found


def build(**arguments):
    torch.manual_seed(0)
    return ForgeryLocalizer(BACKBONE, embed_dim=16, residual_maps=0, **arguments)


def test_losses_and_results():
    model = build(loss=dict(dice_weight=0.5))
    losses = model(torch.randn(2, 3, 64, 96), [sample(), sample(forged=False)], mode="loss")
    assert set(losses) == {"loss_mask", "loss_label", "loss_aux", "loss_dice"}
    model.eval()
    with torch.no_grad():
        found = model(torch.randn(1, 3, 64, 96), [sample(original=(128, 160), padding=16)], mode="predict")[0]
    assert found.forgery_prob.data.shape == (1, 128, 160)
    assert torch.equal(found.pred_sem_seg.data, (found.forgery_prob.data > 0.5).long())
    assert torch.allclose(found.seg_logits.data.softmax(0)[1:], found.forgery_prob.data, atol=1e-6)
    assert found.forgery_score.shape == ()


def test_padding_is_cut_off_before_resizing():
    model = build().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = model(image)
        found = model(image, [sample(padding=32)], mode="predict")[0]
        plain = model(image, [sample(original=(64, 64), padding=32)], mode="predict")[0]
    assert torch.allclose(plain.forgery_prob.data, logits[0, :, :, :64].sigmoid())
    assert found.forgery_prob.data.shape == (1, 64, 96)


def test_padding_does_not_count_in_the_loss():
    model = build(aux=False).eval()
    image = torch.randn(1, 3, 64, 96)
    one = sample(padding=32)
    two = sample(padding=32)
    two.gt_sem_seg.data[:, 40:, 64:] = 255
    first, second = (model(image, [s], mode="loss") for s in (one, two))
    assert torch.allclose(first["loss_mask"], second["loss_mask"])


def test_score_from_the_mask():
    model = build(score_from_mask=True).eval()
    with torch.no_grad():
        found = model(torch.randn(1, 3, 64, 96), [sample()], mode="predict")[0]
    assert found.forgery_score == found.forgery_prob.data.max()


def test_an_official_checkpoint_selects_the_published_model(tmp_path):
    torch.manual_seed(0)
    source = NFAViT(official=True, **NET)
    torch.save({"model": source.state_dict()}, tmp_path / "official.pth")
    model = NFAViTLocalizer(official_checkpoint=str(tmp_path / "official.pth")).eval()
    assert model.net.official
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), source.eval()(image).mask_logits)
    parts = NFAViTLocalizer(net=NET, extractor=None)
    torch.save(parts.net.noise_extractor.state_dict(), tmp_path / "dncnn.pth")
    again = NFAViTLocalizer(net=NET, extractor=str(tmp_path / "dncnn.pth"))
    assert torch.equal(again.net.noise_extractor.layers[0].weight, parts.net.noise_extractor.layers[0].weight)
    with pytest.raises(CheckpointError, match="image_backbone do not match"):
        NFAViTLocalizer(net=NET, image_pretrained=str(tmp_path / "dncnn.pth"))


def test_wrong_arguments():
    with pytest.raises(ConfigError, match=r"`noise` must be .* got 'x'"):
        build(noise="x")
    with pytest.raises(ConfigError, match=r"model.net: .*official"):
        NFAViTLocalizer(net=dict(train_noise="official"))


def test_a_file_of_the_official_code_is_loaded_by_its_names():
    torch.manual_seed(0)
    published = NFAViT(official=True, **NET).eval()
    checkpoint = {"model": {f"module.{name}": tensor for name, tensor in published.state_dict().items()}, "epoch": 199}
    model = NFAViTLocalizer(net=dict(official=True, **NET)).eval()
    report = fit(model, checkpoint, "checkpoint-199.pth")
    assert len(report.loaded) == len(published.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(image), published(image).mask_logits)
    with pytest.raises(CheckpointError, match="use the config nfa-vit-published"):
        fit(NFAViTLocalizer(net=NET), checkpoint, "checkpoint-199.pth")
