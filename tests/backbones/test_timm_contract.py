"""What timm's own test suite asserts of its models, asserted of every model registered here.

The architectures are cut down to a few narrow blocks, at timm's input sizes, to keep the file quick; what does
not depend on width or depth is checked on the full models without memory (device "meta").
"""

import math
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import set_scriptable
from timm.models import create_feature_extractor, get_graph_node_names, group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from visionattn import backbones

MODULES = ["dinat", "dinat_s", "dinat_isotropic", "davit", "biformer", "biformer_stl"]


def ours(names: list[str]) -> list[str]:
    """Without timm's own, which share the name of a module."""
    return [n for n in names if timm.models.model_entrypoint(n.split(".")[0]).__module__.startswith("visionattn.")]


NAMES = ours(timm.list_models(module=MODULES))
TAGGED = ["dinat_pico", "davit_large_window12_384", *ours(timm.list_models(module=MODULES, pretrained=True))]
# The models that still differ when cut down: with and without dilation, layer scale, kernel 11; each class.
DISTINCT = [
    "nat_mini",
    "nat_base",
    "dinat_pico",
    "dinat_base",
    "dinat_large_11x11",
    "dinat_s_tiny",
    "nat_isotropic_small",
    "dinat_isotropic_small",
    "vitrpb_small",
    "davit_large_window12_384",
    "biformer_tiny",
    "biformer_stl",
]
ONE_OF_EACH_CLASS = [
    "dinat_pico",
    "dinat_s_tiny",
    "dinat_isotropic_small",
    "vitrpb_small",
    "davit_large_window12_384",
    "biformer_tiny",
    "biformer_stl",
]


def is_channels_last(model: nn.Module) -> bool:
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def is_isotropic(name: str) -> bool:
    return "isotropic" in name or name.startswith("vitrpb")


def small(name: str, **kwargs) -> nn.Module:
    """The model with few narrow blocks; kernel, dilations, layer scale, stem and head stay."""
    if is_isotropic(name):
        size = {"embed_dim": 16, "depth": 3, "num_heads": 2}
        if kwargs.get("features_only"):
            size["out_indices"] = (0, 1, 2)
    elif name.startswith("biformer"):
        size = {"embed_dim": 8, "depths": (1, 2, 1, 1), "head_dim": 8}
    elif name.startswith("davit"):
        size = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
    else:
        size = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 4)}
    return timm.create_model(name, **{**size, **kwargs})


def channels_first(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    return features.permute(0, 3, 1, 2) if is_channels_last(model) else features


def image(name: str, side: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    side = 224 if name.startswith("vitrpb") else side  # the one model of fixed size
    return torch.randn(batch, channels, side, side)


def forward_order(name: str) -> tuple[int, bool]:
    """BiFormer lists the steps between its stages before the stages; sorting by this (stably) puts them between."""
    stage = re.match(r"(downsample_layers|stages)\.(\d+)", name)
    return (int(stage[2]), stage[1] == "stages") if stage else (99, True)


def assert_all_grads(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), f"gradient of {name} is not finite"


@pytest.fixture(autouse=True)
def _repeatable_and_small():
    """A seed, and one thread: with models this small, more of them only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_models_are_here():
    assert len(NAMES) == 11 + 4 + 6 + 1 + 4
    assert set(ONE_OF_EACH_CLASS) <= set(NAMES)
    assert {type(small(name, device="meta")).__module__.split(".")[-1] for name in NAMES} == set(MODULES)


@pytest.mark.parametrize("name", DISTINCT)
def test_forward_and_checkpointing(name):
    model = small(name).eval()
    x = image(name, 96)
    out = model(x)
    assert out.shape == (1, 1000)
    assert out.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_checkpointing_keeps_gradients(name):
    model = small(name, drop_path_rate=0.5).train()
    x = image(name, 96)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("name", DISTINCT)
def test_backward(name):
    model = small(name, num_classes=42).train()
    out = model(image(name, 128, batch=2))
    out.mean().backward()
    assert out.shape == (2, 42)
    assert out.isfinite().all()
    assert_all_grads(model)


@pytest.mark.parametrize("name", TAGGED)
def test_default_cfg(name):
    model = small(name).eval()
    cfg = model.default_cfg
    x = torch.randn(1, *cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert is_channels_last(model) == (not name.startswith("davit"))
        assert channels_first(model, features).shape == (1, model.num_features, *cfg["pool_size"])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        assert model.forward_head(features).shape == (1, cfg["num_classes"])


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_classifier_can_be_replaced(name):
    model = small(name).eval()
    x = image(name, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        if is_channels_last(model):  # DaViT norms what it has pooled
            torch.testing.assert_close(pooled, features.mean((1, 2)))
        torch.testing.assert_close(model(x), model.get_classifier()(pooled))
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(0, "")
        assert model(x).shape == features.shape
        if is_channels_last(model):
            torch.testing.assert_close(model(x), features)
        assert small(name, num_classes=0, global_pool="").eval()(x).shape == features.shape
        if not is_channels_last(model):
            return  # the norm of timm's head fits no other width
        model.reset_classifier(7, "catavgmax")
        assert model(x).shape == (1, 7)
        assert (model.num_classes, model.head_hidden_size) == (7, 2 * model.num_features)


@pytest.mark.parametrize("name", TAGGED)
def test_cfg_names_exist_in_the_full_model(name):
    model = timm.create_model(name, device="meta")
    names = model.state_dict()
    assert model.default_cfg["first_conv"] + ".weight" in names
    assert model.default_cfg["classifier"] + ".weight" in names
    assert model.get_classifier().out_features == model.num_classes == model.default_cfg["num_classes"]
    assert model.in_chans == 3
    for info in model.feature_info:
        assert model.get_submodule(info["module"]) is not None


@pytest.mark.parametrize("name", DISTINCT)
def test_features_only(name):
    """Channels and reductions as announced, also for a size that divides nothing."""
    model = small(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    inputs = [image(name, 96)] if name.startswith("vitrpb") else [image(name, 96), torch.randn(2, 3, 71, 103)]
    for x in inputs:
        maps = model(x)
        for out, width, reduction in zip(maps, channels, reductions, strict=True):
            expected = (x.shape[0], width, *(math.ceil(side / reduction) for side in x.shape[2:]))
            assert out.shape == expected
            assert out.is_contiguous()
            assert out.isfinite().all()


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_features_of_chosen_levels_have_all_gradients(name):
    """Pruning leaves nothing behind that DDP would wait for."""
    model = small(name, features_only=True, out_indices=(0, 1)).train()
    sum(out.mean() for out in model(image(name, 96))).backward()
    assert_all_grads(model)


def test_own_norms_follow_the_chosen_levels():
    model = small("dinat_pico", features_only=True, out_indices=(1, 3), out_norms=(0, 1, 2, 3)).train()
    assert {name for name, _ in model.model.named_children() if name.startswith("norm")} == {
        "norm",
        "norm1",
        "norm3",
    }
    x = image("dinat_pico", 96)
    outputs = model(x)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    assert_all_grads(model)
    bare = small("dinat_pico", features_only=True, out_indices=(1, 3)).eval()
    backbones.load_official(bare, model.state_dict())
    model.eval()
    for out, plain, norm in zip(model(x), bare(x), (model.model.norm1, model.model.norm3), strict=True):
        torch.testing.assert_close(out, norm(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", DISTINCT)
def test_forward_intermediates(name):
    model = small(name).eval()
    x = image(name, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, features)
        assert len(maps) == len(model.feature_info)
        for out, info in zip(maps, model.feature_info, strict=True):
            assert out.shape[1] == info["num_chs"]
        _, normed = model.forward_intermediates(x, indices=1, norm=True)
        torch.testing.assert_close(normed[0], channels_first(model, features))
        early = model.forward_intermediates(x, indices=[0, -2], stop_early=True, intermediates_only=True)
        for out, expected in zip(early, (maps[0], maps[-2]), strict=True):
            assert torch.equal(out, expected)
        nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(nhwc[0].permute(0, 3, 1, 2), maps[0])
        model.set_grad_checkpointing()
        torch.testing.assert_close(model.forward_intermediates(x)[0], features)
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_prune(name):
    model = small(name).eval()
    x = image(name, 64)
    with torch.no_grad():
        _, maps = model.forward_intermediates(x)
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        final, pruned = model.forward_intermediates(x)
        assert torch.equal(pruned[1], maps[1])
        assert torch.equal(channels_first(model, final), maps[1])
        assert model.num_features == maps[1].shape[1]
        model.reset_classifier(5, "avg")
        assert model(x).shape == (1, 5)


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_other_channels_and_odd_sizes(name, channels):
    model = small(name, in_chans=channels).eval()
    assert model.in_chans == channels
    assert model(image(name, 33, channels=channels)).shape == (1, 1000)
    if not name.startswith("vitrpb"):
        for height, width in [(1, 1), (97, 65), (31, 224)]:
            assert model(torch.randn(1, channels, height, width)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name):
    """Every parameter has a place; places are in the order of the forward pass."""
    model = timm.create_model(name, device="meta")
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == {parameter for parameter, _ in model.named_parameters()}
        names = [parameter for parameter, _ in model.named_parameters()]
        if name.startswith("biformer"):
            names.sort(key=forward_order)
        order = [groups[parameter] for parameter in names]
        assert order == sorted(order)
        first_conv, classifier = (model.default_cfg[key] for key in ("first_conv", "classifier"))
        assert groups[f"{first_conv}.weight"] == 0
        assert groups[f"{classifier}.weight"] == max(groups.values())
        if is_channels_last(model):
            assert groups["norm.weight"] < groups["head.weight"]
    if name.startswith("davit"):  # timm's own grouping
        return
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = sum(len(getattr(stage, "blocks", [stage])) for stage in model.stage_list())
    assert len(set(fine.values())) >= blocks + 2


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_optimizer_with_layer_decay(name):
    """Position biases, norms and layer scales are not decayed; the stem learns slowest."""
    model = small(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scale = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            key = names.pop(id(parameter))
            scale[key] = group["lr_scale"]
            decayed = parameter.ndim > 1 and not key.endswith((".rpb", ".bias"))
            assert (group["weight_decay"] > 0) == decayed, key
    assert not names
    first_conv, classifier = (model.default_cfg[key] for key in ("first_conv", "classifier"))
    assert scale[f"{classifier}.weight"] == 1.0
    assert scale[f"{first_conv}.weight"] == min(scale.values()) < 1.0


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_torchscript(name):
    with set_scriptable(True):
        model = small(name).eval()
    x = image(name, 128)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def traced(model: nn.Module, train: bool = False) -> nn.Module:
    train_nodes, eval_nodes = get_graph_node_names(model)
    return create_feature_extractor(model, return_nodes=[(train_nodes if train else eval_nodes)[-1]])


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_fx_forward_is_exact(name):
    pytest.importorskip("torchvision")
    model = small(name).eval()
    x = image(name, 128)
    with torch.no_grad():
        (out,) = traced(model)(x).values()
        assert torch.equal(out, model(x))


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_fx_backward(name):
    pytest.importorskip("torchvision")
    model = traced(small(name, num_classes=42).train(), train=True)
    (out,) = model(image(name, 128, batch=2)).values()
    out.mean().backward()
    assert out.shape == (2, 42)
    assert_all_grads(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_fx_torchscript(name):
    pytest.importorskip("torchvision")
    with set_scriptable(True):
        model = small(name).eval()
    x = image(name, 128)
    with torch.no_grad():
        (out,) = torch.jit.script(traced(model))(x).values()
        torch.testing.assert_close(out, model(x))


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_compile_is_one_graph(name):
    """Captured whole, with its backward; the code generator of the machine at hand is not part of it."""
    model = small(name, **({"depth": 2} if is_isotropic(name) else {"depths": (1, 1, 1, 1)})).eval()
    x = image(name, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, model(x))
    out.square().mean().backward()
    assert_all_grads(model)


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_export(name):
    model = small(name).eval()
    x = image(name, 96)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_export_with_any_batch_size(name):
    model = small(name).eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=32)},)
    program = torch.export.export(model, (image(name, 64, batch=2),), dynamic_shapes=dynamic).module()
    for batch in (1, 3):
        x = image(name, 64, batch=batch)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("name", DISTINCT)
def test_safetensors_round_trip(name, tmp_path):
    """Every tensor has its own memory, and what comes back computes the same bits."""
    source, target = small(name).eval(), small(name).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = image(name, 64)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("name", TAGGED)
def test_shapes_without_memory(name):
    """The full model on the meta device, at the size of its cfg: what a user inspects before building it."""
    model = timm.create_model(name, device="meta").eval()
    cfg = model.default_cfg
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert channels_first(model, features).shape == (1, model.num_features, *cfg["pool_size"])
    assert model(x).shape == (1, cfg["num_classes"])


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_autocast_and_bfloat16(name):
    model = small(name).eval()
    x = image(name, 96)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x) - expected).abs().max() < 0.05
        half = small(name, dtype=torch.bfloat16).eval()
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        half.load_state_dict(model.state_dict())
        assert (half(x.bfloat16()).float() - expected).abs().max() < 0.05


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_to_empty_device_and_double(name):
    model = small(name, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert small(name).double().eval()(image(name, 96).double()).dtype == torch.double
