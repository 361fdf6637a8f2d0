"""ELA and ULSAM within timm's convolutional networks."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.layers import ULSAM, EfficientLocalAttention, insert_after, replace_blocks
from visionattn.layers.insert import INSERTED

SMALL = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "zero_init_last": False}
MODELS = {
    "resnet18": SMALL,
    "resnet50": {**SMALL, "channels": (16, 16, 32, 32)},
    "seresnet18": SMALL,
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "convnext_atto": {"dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1)},
    "mobilenetv4_conv_small_035": {},
}


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **MODELS[name], **options)


@pytest.mark.parametrize("attention", INSERTED)
@pytest.mark.parametrize("name", MODELS)
def test_training(name, attention):
    """Steps lower the loss and use every parameter; what was there keeps its name and value."""
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = insert_after(model, attention)
    assert all(isinstance(model.get_submodule(path), INSERTED[attention]) for path in report.modules)
    after = model.state_dict()
    assert set(after) - set(before) == set(report.new)
    for key, value in before.items():
        assert torch.equal(after[key], value)
    found = make(name).load_state_dict(after, strict=False)
    assert not found.missing_keys
    assert set(found.unexpected_keys) == set(report.new)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    values = []
    for _ in range(5):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        values.append(loss.item())
    assert min(values[1:]) < values[0]


@pytest.mark.parametrize("attention", INSERTED)
@pytest.mark.parametrize("name", ["resnet18", "seresnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_copies(name, attention):
    model = make(name).eval()
    insert_after(model, attention)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(images), expected)
        fresh = make(name).eval()
        insert_after(fresh, attention)
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh(images), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_features_only(name):
    model = make(name, features_only=True)
    images = torch.randn(2, 3, 64, 64)
    plain = [f.detach() for f in model.eval()(images)]
    insert_after(model, "ela")
    features = model(images)
    assert [f.shape for f in features] == [f.shape for f in plain]
    assert not torch.allclose(features[-1], plain[-1])
    report_again = make(name, features_only=True)
    assert insert_after(report_again, "ulsam").modules


def test_where_it_is_put():
    """At the end of the branch, before it is added; the numbers of a block are those of its parts."""
    model = make("resnet18").eval()
    assert insert_after(model, "ela").modules == tuple(f"layer{i}.0.se" for i in range(1, 5))
    block = model.layer2[0]
    x = torch.randn(1, 16, 16, 16)
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(block.se(branch) + block.downsample(x)))
    inverted = make("mobilenetv3_small_050").eval()
    insert_after(inverted, "ela")
    assert type(inverted.blocks[0][0].se).__mro__[1] is type(make("mobilenetv3_small_050").blocks[0][0].se)


def test_after_squeeze_and_excitation():
    model = make("seresnet18").eval()
    twin = make("seresnet18").eval()
    assert insert_after(model, "ela").modules[0] == "layer1.0.se.ela"
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(model.layer1[0].se(x), model.layer1[0].se.ela(twin.layer1[0].se(x)))


def test_after_named_modules():
    """A pattern, a class and a function; the module's own result goes through what is put in."""
    model, plain = make("resnet18").eval(), make("resnet18").eval()
    report = insert_after(model, "ulsam", "layer[34]", num_splits=8)
    assert report.modules == ("layer3.ulsam", "layer4.ulsam")
    assert model.layer4.ulsam.num_splits == 8
    x = torch.randn(1, 64, 8, 8)
    torch.testing.assert_close(model.layer4(x), model.layer4.ulsam(plain.layer4(x)))
    for where in (nn.MaxPool2d, lambda name: name == "maxpool"):
        model = make("resnet18")
        assert insert_after(model, "ela", where, dim=64).modules == ("maxpool.ela",)
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_sequences():
    """One that runs its modules in order gets one more; what runs them otherwise is refused."""

    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 1)), Twice(nn.Conv2d(16, 16, 1)))
    insert_after(model, "ela", "0")
    assert list(dict(model[0].named_children())) == ["0", "ela"]
    x = torch.randn(1, 3, 4, 5)
    torch.testing.assert_close(model[0](x), model[0].ela(model[0][0](x)))
    with pytest.raises(
        ValueError, match="`where` must not match a Sequential with its own `forward`, got '1' with the Twice 1"
    ):
        insert_after(model, "ela", "1")


def test_both_in_one_model():
    model = make("resnet18").eval()
    insert_after(model, "ela")
    report = insert_after(model, "ulsam", "layer1.0.conv1")
    assert report.modules == ("layer1.0.conv1.ulsam",)
    assert isinstance(model.layer1[0].conv1, nn.Conv2d)
    insert_after(model, "ulsam", "layer1.0.se")
    assert isinstance(model.layer1[0].se.ulsam, ULSAM)
    twin = pickle.loads(pickle.dumps(model))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(twin(x), model(x))


def test_options_and_what_is_adapted():
    """Groups are reduced to what divides the channels, with a note; those given are not."""
    model = make("mobilenetv3_small_050")
    report = insert_after(model, "ela", variant="T")
    widths = {m.dim: m.gn.num_groups for m in model.modules() if isinstance(m, EfficientLocalAttention)}
    assert all(dim % groups == 0 for dim, groups in widths.items())
    assert widths[40] == 8
    assert "gn_groups=8 for 40 channels" in report.notes
    assert {m.conv.kernel_size for m in model.modules() if isinstance(m, EfficientLocalAttention)} == {(5,)}
    with pytest.raises(ValueError, match="`gn_groups` must divide `dim`=40, such as 8, got 16"):
        insert_after(make("mobilenetv3_small_050"), "ela", gn_groups=16)


def test_device_type_and_mode():
    model = make("resnet18").bfloat16().eval()
    insert_after(model, "ulsam")
    assert {p.dtype for p in model.layer1[0].se.parameters()} == {torch.bfloat16}
    assert not model.layer1[0].se.subspaces[0].bn_dws.training


def test_compile_and_export():
    model = make("resnet18").eval()
    insert_after(model, "ela")
    insert_after(model, "ulsam", "layer4", num_splits=2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


def test_errors_leave_the_model():
    model = make("resnet18")
    names = list(model.state_dict())
    for arguments, options, message in (
        (("se",), {}, "`attention` must be one of .*, got 'se'"),
        (("ela", "stage*"), {}, r"`where` must match a module name such as conv1, bn1, act1, got 'stage\*'"),
        (("ela", "layer1.0.bn1"), {}, r"`where` must match blocks, .* with the norm layer1.0.bn1"),
        (("ulsam",), {"num_splits": 3}, "`num_splits` must be at least 1 and divide `dim`=16, got 3"),
        (("ela", "maxpool"), {}, "`dim` must be given, because the channels of the MaxPool2d maxpool"),
    ):
        with pytest.raises(ValueError, match=message):
            insert_after(model, *arguments, **options)
    assert list(model.state_dict()) == names
    insert_after(model, "ela", "layer1")
    with pytest.raises(ValueError, match="matches layer1, which already has ela"):
        insert_after(model, "ela", "layer1")
    with pytest.raises(ValueError, match="`where` must be given, because VisionTransformer has no"):
        insert_after(timm.create_model("vit_tiny_patch16_224", depth=1), "ela")


@pytest.mark.parametrize(
    ("name", "where", "blocks", "kept"),
    [
        ("mobilenetv1_100", "blocks.3.*", [f"blocks.3.{n}" for n in range(1, 6)], "blocks.3.0"),
        (
            "mobilenetv2_035",
            "blocks.[34].*",
            ["blocks.3.1", "blocks.3.2", "blocks.3.3", "blocks.4.1", "blocks.4.2"],
            "blocks.3.0",
        ),
        ("efficientnet_b0", "blocks.2.*", ["blocks.2.1"], "blocks.2.0"),
        ("mobilenetv4_conv_small_035", "blocks.2.*", [f"blocks.2.{n}" for n in range(1, 6)], "blocks.2.0"),
        ("resnet50", "layer2.*", [], None),
        ("convnext_atto", "stages.1.blocks.*", ["stages.1.blocks.0"], None),
    ],
)
def test_replaced_blocks(name, where, blocks, kept):
    """Blocks with stride 1 and equal channels, and no others; shapes of all levels stay, and parameters get fewer."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **MODELS.get(name, {})).eval()
    if not blocks:
        with pytest.raises(ValueError, match=r"`where` must match a block with stride 1 and equal channels"):
            replace_blocks(model, "ulsam", where)
        return
    images = torch.randn(2, 3, 64, 64)
    before = model.state_dict()
    shapes = {}
    for path in blocks:
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, out, path=path: shapes.update({path: (inputs[0].shape, out.shape)})
        )
    expected = model(images).shape
    assert all(given == out for given, out in shapes.values())
    report = replace_blocks(model, "ulsam", where, num_splits=2)
    assert report.modules == tuple(blocks)
    assert all(isinstance(model.get_submodule(path), ULSAM) for path in blocks)
    assert (kept in report.notes[0]) if kept else not report.notes
    after = model.state_dict()
    assert set(report.new) == after.keys() - before.keys()
    assert set(report.dropped) == before.keys() - after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before.keys() & after.keys())
    assert sum(map(torch.numel, after.values())) < sum(map(torch.numel, before.values()))
    assert model.train()(images).shape == expected
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_errors_and_type_of_replaced_blocks():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", layers=(1, 1, 2, 1), channels=(16, 32, 64, 128)).half().eval()
    for arguments, options, message in (
        (("ela", "layer3.1"), {}, "`attention` must be 'ulsam'"),
        (("ulsam", None), {}, "`where` must be given"),
        (("ulsam", "layer4.*"), {}, r"a block with stride 1 and equal channels \(layer3\.1\), got 'layer4"),
        (("ulsam", "layer3.1"), {"num_splits": 5}, "must be at least 1 and divide `dim`=64, got 5"),
        (("ulsam", "layer3.1"), {"splits": 4}, "`splits` is not an argument of ULSAM"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_blocks(model, *arguments, **options)
    replace_blocks(model, "ulsam", lambda path: path == "layer3.1")
    assert next(model.layer3[1].parameters()).dtype == torch.half
    assert not model.layer3[1].training
