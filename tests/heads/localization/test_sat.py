import pytest
import timm
import torch
import torch.nn.functional as F

from visionattn.backbones import load_official
from visionattn.errors import CheckpointError
from visionattn.heads.localization.sat import SpatialAwareToken, create_sat, spatially_aware_attention


def tiny(num_classes=4, **kwargs):
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 4, "num_heads": 3, "img_size": 64, **kwargs}
    return create_sat("vit_tiny_patch16_224", num_classes, **options)


@pytest.fixture(scope="module")
def recorded(shared_dir):
    return torch.load(shared_dir / "parity/localization/sat_xxs.pt", weights_only=True)


@pytest.fixture(scope="module")
def published(recorded):
    model = create_sat("deit_tiny_patch16_224", 10, embed_dim=48, num_heads=3, area=recorded["meta"]["area_thr"])
    report = load_official(model, {"model": {f"module.{k}": v for k, v in recorded["state_dict"].items()}})
    assert not report.missing
    assert not report.dropped
    assert len(report.loaded) == len(recorded["state_dict"])
    return model.eval()


def test_agrees_with_the_authors_code(recorded, published):
    outputs = recorded["outputs"]
    output = published(recorded["inputs"]["x"].float())
    for mask, expected in zip(output.masks, outputs["masks_last3"], strict=True):
        assert (mask - expected[:, 0, 0]).abs().max() <= 1e-5
    assert (output.logits - outputs["logits"]).abs().max() <= 1e-4
    assert (output.maps[:, 0] - outputs["map"]).abs().max() <= 1e-5
    assert (output.prefix[:, 0] - outputs["cls_token"]).abs().max() <= 1e-4
    assert (output.location - outputs["loc_token"]).abs().max() <= 1e-4
    losses = published.loss(output, recorded["inputs"]["label"])
    for name, expected in outputs["loss_terms"].items():
        assert losses[f"loss_{name}"].item() == pytest.approx(expected.item(), abs=1e-5)
    total = sum(losses.values())
    assert total.item() == pytest.approx(outputs["loss"].item(), abs=2e-5)
    published.zero_grad()
    total.backward()
    gradients = {name: parameter.grad for name, parameter in published.named_parameters()}
    for name, expected in recorded["grads"].items():
        ours = gradients[name if name.startswith(("loc_", "head.")) else f"vit.{name}"]
        assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item()), name


def test_smoothing_kernel_is_the_published_one(recorded):
    assert (tiny().smoothing - recorded["state_dict"]["weight"]).abs().max() < 1e-6


def test_attention_is_that_of_the_definition():
    torch.manual_seed(0)
    attention = timm.models.vision_transformer.Attention(12, num_heads=3, qkv_bias=True, qk_norm=True,
                                                         norm_layer=torch.nn.LayerNorm).double().eval()  # fmt: skip
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    q, k, v = attention.qkv(x).reshape(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
    logits = attention.q_norm(q) @ attention.k_norm(k).mT * attention.scale
    mask = logits[:, :, -1].mean(1).sigmoid()
    weights = logits.softmax(-1) * mask[:, None, None]
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 7, 12))
    out, found = spatially_aware_attention(attention, x)
    assert torch.allclose(found, mask, atol=1e-12)
    assert torch.allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (50, 81), (16, 16)])
def test_takes_pictures_of_any_size(height, width):
    model = tiny().eval()
    output = model(torch.randn(1, 3, height, width))
    rows, columns = -(-height // 16), -(-width // 16)
    assert output.maps.shape == (1, 1, rows, columns)
    assert output.class_maps.shape == (1, 4, rows, columns)
    assert torch.allclose(output.logits, output.class_maps.mean((2, 3)))
    assert output.masks[0].shape == (1, 1 + rows * columns + 1)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", 2),
        ("deit3_small_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_base_patch16_siglip_224", 0),
        ("vit_base_patch16_clip_224", 1),
    ],
)
def test_any_vision_transformer_of_timm_does(name, prefix):
    extra = {"global_pool": ""} if "siglip" in name else {}
    model = create_sat(name, 3, embed_dim=24, depth=3, num_heads=2, img_size=56, aware_blocks=2, **extra).eval()
    output = model(torch.randn(2, 3, 42, 56))
    assert output.prefix.shape == (2, prefix, 24)
    assert len(output.masks) == 2
    assert output.logits.shape == (2, 3)
    output.logits.sum().backward()
    assert model.loc_token.grad.abs().sum() > 0, "the classification must teach the spatial token"


def test_area_is_of_the_batch_and_not_of_each_image():
    model = tiny(area=0.5)
    output = model(torch.randn(2, 3, 64, 64))
    maps = torch.cat([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    losses = model.loss(output._replace(maps=maps), torch.tensor([0, 1]))
    assert losses["loss_area"] == 0
    smooth = F.conv2d(maps, model.smoothing, padding=1)
    assert torch.allclose(losses["loss_norm"], (smooth * (1 - smooth)).mean())
    assert losses["loss_cls"].item() == pytest.approx(F.cross_entropy(output.logits, torch.tensor([0, 1])).item())


def test_starts_from_a_plain_transformer_of_another_size():
    plain = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=4, num_heads=3, img_size=96, num_classes=7)
    model = tiny()
    before = model.loc_token.detach().clone()
    report = model.load_official(plain.state_dict())
    assert set(report.missing) == {"loc_token", "loc_embed", "smoothing", "head.weight", "head.bias"}
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert list(report.interpolated) == ["vit.pos_embed"]
    assert torch.equal(model.vit.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)
    assert torch.equal(model.loc_token, before)


def test_official_checkpoint_for_other_classes_keeps_the_classifier():
    source = tiny(num_classes=9)
    weights = {n.removeprefix("vit.").replace("smoothing", "weight"): v for n, v in source.state_dict().items()}
    model = tiny()
    report = model.load_official(weights)
    assert set(report.missing) == {"head.weight", "head.bias"}
    assert torch.equal(model.loc_token, source.loc_token)


def test_checkpoint_of_another_model_is_refused_and_changes_nothing():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=3, num_heads=3, img_size=64)
    with pytest.raises(CheckpointError, match=r"vit\.blocks\.3"):
        model.load_official(plain.state_dict())
    with pytest.raises(CheckpointError, match="no backbone tensors"):
        model.load_official({"epoch": 3})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aware_blocks": 5}, r"`aware_blocks` must be in 1\.\.4, .* got 5"),
        ({"area": 1.5}, "`area` must be .* got 1.5"),
        ({"num_classes": 0}, "`num_classes` must be at least 1, got 0"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="resnet10t"):
        create_sat("resnet10t", 3)
    with pytest.raises(ValueError, match="ParallelScalingBlock"):
        create_sat("vit_tiny_patch16_224", 3, embed_dim=24, depth=2, num_heads=3, aware_blocks=1,
                   block_fn=timm.models.vision_transformer.ParallelScalingBlock)  # fmt: skip


def test_checkpointing_and_half_precision_keep_the_numbers():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.vit.set_grad_checkpointing()
    assert torch.allclose(model(x).logits, expected.logits, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.maps.dtype == torch.float32
    assert (half.maps - expected.maps).abs().max() < 2e-2


def test_map_of_the_first_blocks_is_not_used():
    model = tiny(aware_blocks=1).eval()
    output = model(torch.randn(1, 3, 64, 64))
    assert len(output.masks) == 1
    assert isinstance(model, SpatialAwareToken)
    assert torch.equal(output.maps.flatten(), output.masks[0][0, 1:-1])
