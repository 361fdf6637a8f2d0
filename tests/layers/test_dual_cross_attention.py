"""Dual cross-attention against the fixtures, which are computed from its equations, and against its definition."""

import importlib.util

import pytest
import timm
import torch
import torch.nn.functional as F

from visionattn.layers import DualCrossAttention
from visionattn.layers.dual_cross_attention import attention_rollout


def small(share=0.3, depth=2, **options):
    torch.manual_seed(0)
    sizes = dict(img_size=(16, 24), patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=5)
    vit = timm.create_model("vit_tiny_patch16_224", **sizes | options)
    return DualCrossAttention(vit, share)


@pytest.mark.parametrize("name", ["dcal_small_10", "dcal_small_30"])
def test_fixtures(shared_dir, name):
    spec = importlib.util.spec_from_file_location("fill", shared_dir / "parity" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    record = torch.load(shared_dir / "parity" / "dcal" / f"{name}.pt", weights_only=True)
    cfg = record["meta"]["cfg"]
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=cfg["img_size"], patch_size=cfg["patch"], embed_dim=cfg["dim"],
        depth=cfg["depth"], num_heads=cfg["heads"], num_classes=3,
    )  # fmt: skip
    model = DualCrossAttention(vit, cfg["share"]).train()
    weights = {}
    for key, shape in record["shapes"].items():
        part, inner = key.split(".", 1)
        weights[key] = fill.fill_tensor(inner, shape, record["salt"] + 1000 * (part == "glca"))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith(("vit.head", "glca_head", "glca_norm", "weights")) for key in missing)
    x = fill.det_input(record["input_shape"], record["input_seed"]).requires_grad_()
    found = model(x, partner=torch.arange(len(x)).roll(1))
    expected = record["outputs"]
    for key, value in dict(sa=found.tokens, glca=found.local_tokens, pwca=found.pair_tokens).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5 * expected[key].abs().max().item())
    torch.testing.assert_close(found.rollout, expected["rollout"], rtol=1e-5, atol=1e-6)
    assert torch.equal(found.rows, expected["rows"])
    fill.loss([found.tokens, found.local_tokens, found.pair_tokens]).backward()
    torch.testing.assert_close(x.grad.flatten()[::37][: len(record["grad_input_sub37"])], record["grad_input_sub37"],
                               rtol=1e-4, atol=1e-4 * record["grad_input_sub37"].abs().max().item())  # fmt: skip
    for key, norm in record["grad_norms"].items():
        gradient = model.get_parameter(key).grad
        assert gradient is not None, key
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), key


def test_eval_is_the_plain_transformer_and_all_patches_are_plain_attention():
    model = small(share=1.0).eval()
    x = torch.randn(3, 3, 16, 24)
    with torch.no_grad():
        found = model(x)
        torch.testing.assert_close(found.logits, model.vit(x))
        torch.testing.assert_close(found.local_tokens, model.glca(found.tokens))  # every token is a query
        mean = (found.logits.softmax(1) + found.local_logits.softmax(1)) / 2
        torch.testing.assert_close(model.probabilities(found), mean)
    assert found.pair_logits is None
    assert found.pair_tokens is None
    assert found.features.shape == (3, 48)
    torch.testing.assert_close(found.rollout.sum(1) + attention_to_class(model, x), torch.ones(3))


def attention_to_class(model, x):
    """One minus the rollout of the patches, by products of whole matrices."""
    tokens = model.vit._pos_embed(model.vit.patch_embed(x))
    product = torch.eye(tokens.shape[1]).expand(len(x), -1, -1)
    with torch.no_grad():
        for block in model.vit.blocks:
            attn = block.attn
            q, k, _ = attn.qkv(block.norm1(tokens)).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
            mean = (q @ k.mT * attn.scale).softmax(-1).mean(1)
            product = (0.5 * mean + 0.5 * torch.eye(tokens.shape[1])) @ product
            tokens = block(tokens)
    return product[:, 0, 0]


def test_an_image_paired_with_itself_is_plain_attention():
    """The softmax over keys that all occur twice is that over the keys."""
    model = small().train()
    x = torch.randn(2, 3, 16, 24)
    found = model(x, partner=torch.arange(2))
    torch.testing.assert_close(found.pair_logits, found.logits)
    assert not torch.allclose(model(x, partner=torch.tensor([1, 0])).pair_logits, found.logits, atol=1e-4)


def test_number_of_queries_is_rounded_up():
    rows = small(share=0.4).eval()(torch.randn(2, 3, 16, 24)).rows
    assert rows.shape == (2, 1 + 3)  # of 6 patches
    assert (rows[:, 0] == 0).all()
    assert (rows.diff(dim=1) > 0).all()


def test_losses_are_weighted():
    model = small().train()
    labels = torch.tensor([1, 4])
    output = model(torch.randn(2, 3, 16, 24))
    model.weights.data = torch.tensor([0.0, 1.0, -1.0])
    losses = model.loss(output, labels)
    plain = F.cross_entropy(output.local_logits, labels)
    torch.testing.assert_close(losses["loss_glca"], 0.5 * (plain * torch.exp(torch.tensor(-1.0)) + 1))
    sum(losses.values()).backward()
    assert model.weights.grad.abs().min() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_layer_scale_registers_and_sizes():
    model = small(init_values=0.1, reg_tokens=2, dynamic_img_size=True, qk_norm=True).eval()
    found = model(torch.randn(1, 3, 32, 40))
    assert found.rollout.shape == (1, 20)
    assert found.rows.min() == 0
    assert found.rows[:, 1:].min() >= 3  # registers are not selected


def test_wrong_models():
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\], got 0"):
        small(share=0)
    with pytest.raises(ValueError, match="with a class token and a classifier, got a ResNet"):
        DualCrossAttention(timm.create_model("resnet10t"))
    with pytest.raises(ValueError, match="with a class token"):
        small(class_token=False, global_pool="avg")


def test_rollout_of_one_layer():
    q, k = torch.randn(2, 1, 2, 4, 3)
    attention = (0.5 * q @ k.mT).softmax(-1).mean(1)
    expected = 0.5 * attention[:, 0] + 0.5 * F.one_hot(torch.tensor([0]), 4)
    torch.testing.assert_close(attention_rollout([(q, k)], [0.5]), expected)
