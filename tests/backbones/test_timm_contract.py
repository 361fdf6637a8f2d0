"""The checks of timm's own test suite for every model that this package registers with timm.

Architectures are reduced to a few narrow blocks at timm's input sizes. Checks that do not depend on width and depth use
the full models on the meta device. `EXEMPTIONS` lists what a model does not support, with the reason; an exempted case
must fail, so that the table stays correct.
"""

import math
import re
from fnmatch import fnmatch

import pytest
import timm
import torch
from fixtures.reduced import NAMES, REDUCED, REPRESENTATIVES, SMALL, cfg_of, family, first_of_each, image, small
from safetensors.torch import load_file, save_file
from timm.layers import set_scriptable
from timm.models import create_feature_extractor, get_graph_node_names, group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from visionattn import backbones

_TOKENS = "the features are tokens; like timm's ViTs, tested by test_default_cfg_of_tokens"
_POSE = "pose-aware blocks run only with a pose; tested by test_backward_with_pose"
_JOINTS = "joint heads do not affect the logits; trained with forward_joints, tested by test_backward_with_pose"
_SPARSE = "the shapes inside of sparse convolutions depend on the data"
_SCRIPT = "the optional pose selects modules at run time; use torch.export"
# Check to name pattern to reason.
EXEMPTIONS = {
    "default_cfg": {"pose_vit*": _TOKENS, "*timesformer*": _TOKENS},
    "backward": {"pose_vit*": _POSE, "paab_*": _POSE, "paat_*": _JOINTS},
    "features_backward": {"paat_*": _JOINTS},
    "fx_backward": {"paat_*": _JOINTS},
    "other_sizes": {"vitrpb*": "the position bias fixes the input size"},
    "torchscript": {"pose_vit*": _SCRIPT, "*timesformer*": _SCRIPT, "scatterformer*": _SPARSE},
    "compile": {"scatterformer*": _SPARSE},
    "export": {"scatterformer*": _SPARSE},
    "meta": {"scatterformer*": _SPARSE},
}


def signature(model: nn.Module) -> str:
    text = re.sub(r"\((\w+)\): (DropPath\(.*\)|Identity\(\))", "", repr(model))
    return text + str([(name, tuple(value.shape)) for name, value in model.state_dict().items()])


TAGGED = [tagged for name in NAMES for tagged in timm.list_models(name, include_tags=True)]
DISTINCT = first_of_each(signature)  # all that differ when reduced, such as by layer scale or kernel size


def models(check: str, names: list[str]) -> pytest.MarkDecorator:
    """Parametrize a test with the names; exempted ones must fail."""
    params = []
    for name in names:
        reasons = [reason for pattern, reason in EXEMPTIONS.get(check, {}).items() if fnmatch(name, pattern)]
        marks = [pytest.mark.xfail(reason=reasons[0], strict=True)] if reasons else []
        params.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", params)


def is_channels_last(model: nn.Module) -> bool:
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def as_map(model: nn.Module, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Features as ``[B, C, H, W]``."""
    if features.dim() == 4:
        return features.permute(0, 3, 1, 2) if is_channels_last(model) else features
    size = [math.ceil(side / patch) for side, patch in zip(x.shape[-2:], model.patch_embed.patch_size, strict=True)]
    return features[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, size)


def pose_of(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The pose argument for images `x`, of the models that take one."""
    if isinstance(model, backbones.timesformer.TimeSformer):
        return (torch.ones(x.shape[0], 1, *(math.ceil(side / 16) for side in x.shape[-2:])),)
    if isinstance(model, backbones.pose_vit.PoseVisionTransformer):
        return (torch.ones(x.shape[0], *(math.ceil(side / 16) for side in x.shape[-2:])),)
    return ()


def forward_order(name: str) -> tuple:
    """Sort key that puts parameters in the order of the forward pass where modules are registered in another one.

    BiFormer registers all downsampling modules before the stages, ScatterFormer all norms of a stage before its
    attention layers.
    """
    if found := re.match(r"(downsample_layers|stages)\.(\d+)", name):
        return 0, int(found[2]), found[1] == "stages"
    if found := re.match(r"stage(\d+)\.(\d+)\.(?:\w+_layers\.(\d+))?", name):
        return 1, int(found[1]), int(found[2]), int(found[3] or 0)
    return (-1,) if name.startswith("cpe") else (99,)


def assert_all_grads(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), f"gradient of {name} is not finite"


@pytest.fixture(autouse=True)
def _repeatable_and_small():
    """Set a seed, and one thread, which is fastest for models this small."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_models_are_discovered():
    assert {family(name) for name in NAMES} == set(SMALL)
    assert {"pose_vit", "scatterformer_pico", "timesformer_tiny_patch16_224", "biformer_stl"} <= set(NAMES)
    assert {type(model) for model in REDUCED.values()} == {type(REDUCED[name]) for name in REPRESENTATIVES}


def test_every_exemption_matches_a_model():
    for check, patterns in EXEMPTIONS.items():
        for pattern, reason in patterns.items():
            assert any(fnmatch(name, pattern) for name in NAMES), (check, pattern)
            assert reason


@models("forward", DISTINCT)
def test_forward_and_checkpointing(name):
    model = small(name, num_classes=10).eval()
    x = image(name, 96)
    out = model(x)
    assert out.shape == (1, 10)
    assert out.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-5)


@models("checkpointing", REPRESENTATIVES)
def test_checkpointing_keeps_gradients(name):
    rates = {} if name.startswith("scatterformer") else {"drop_path_rate": 0.5}
    model = small(name, num_classes=10, **rates).train()
    x = image(name, 96)
    pose = pose_of(model, x)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(x, *pose).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@models("backward", DISTINCT)
def test_backward(name):
    model = small(name, num_classes=42).train()
    out = model(image(name, 128, batch=2))
    out.mean().backward()
    assert out.shape == (2, 42)
    assert out.isfinite().all()
    assert_all_grads(model)


@pytest.mark.parametrize("name", [name for name in DISTINCT if family(name) in ("pose_vit", "timesformer")])
def test_backward_with_pose(name):
    model = small(name, num_classes=42).train()
    x = image(name, 128, batch=2)
    if getattr(model, "paat", ()):
        out, joints = model.forward_joints(x)
        (out.mean() + joints[-1].mean()).backward()
    else:
        out = model(x, *pose_of(model, x))
        out.mean().backward()
    assert out.shape == (2, 42)
    assert_all_grads(model)


@models("default_cfg", TAGGED)
def test_default_cfg(name):
    model = small(name).eval()
    cfg = model.default_cfg
    x = torch.randn(1, *cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert as_map(model, features, x).shape == (1, model.num_features, *cfg["pool_size"])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        assert model.forward_head(features).shape == (1, cfg["num_classes"] or model.head_hidden_size)


@pytest.mark.parametrize("name", [name for name in TAGGED if family(name) in ("pose_vit", "timesformer")])
def test_default_cfg_of_tokens(name):
    """timm's checks for its own ViTs, whose features are tokens."""
    model = small(name).eval()
    x = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[2] == model.num_features > 0
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        assert model.forward_head(features).shape == (1, model.default_cfg["num_classes"])
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(x).shape == pooled.shape
        assert small(name, num_classes=0).eval()(x).shape == pooled.shape


@models("classifier", REPRESENTATIVES)
def test_classifier_can_be_replaced(name):
    model = small(name, num_classes=10).eval()
    x = image(name, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        if is_channels_last(model):  # DaViT applies its norm after pooling
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
        model.reset_classifier(7, "avg")
        assert model(x).shape == (1, 7)
        assert not any(module.training for module in model.modules())
        if is_channels_last(model):
            model.reset_classifier(7, "catavgmax")
            assert model(x).shape == (1, 7)
            assert (model.num_classes, model.head_hidden_size) == (7, 2 * model.num_features)


@models("cfg_names", TAGGED)
def test_cfg_names_exist_in_the_full_model(name):
    model = timm.create_model(name, device="meta")
    cfg, names = model.default_cfg, model.state_dict()
    first_conv = cfg["first_conv"]
    for module in (first_conv,) if isinstance(first_conv, str) else first_conv:
        assert module + ".weight" in names
    assert model.num_classes == cfg["num_classes"]
    if cfg["num_classes"]:
        assert cfg["classifier"] + ".weight" in names
        assert model.get_classifier().out_features == cfg["num_classes"]
    assert model.in_chans == cfg["input_size"][0]
    assert len(model.feature_info) >= 3
    for info in model.feature_info:
        assert model.get_submodule(info["module"]) is not None


@models("architecture", TAGGED)
def test_cfg_names_the_model_that_was_created(name):
    """Also of feature extractors, whose data config is that of the classifier."""
    model = timm.create_model(name, device="meta")
    assert model.pretrained_cfg["architecture"] == name.split(".")[0]
    data = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    for options in ({}, {"feature_cls": "getter"}):
        features = timm.create_model(name, device="meta", features_only=True, **options)
        assert features.pretrained_cfg["architecture"] == name.split(".")[0]
        assert timm.data.resolve_data_config(pretrained_cfg=features.pretrained_cfg) == data
        assert {"mean", "std", "input_size"} <= set(features.pretrained_cfg)


@models("saved", REPRESENTATIVES)
def test_a_saved_model_loads_as_itself(name, tmp_path):
    pytest.importorskip("huggingface_hub")
    size = {**SMALL[family(name)], "num_classes": 10}
    model = timm.create_model(name, **size).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=size)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(loaded) is type(model)
    assert loaded.pretrained_cfg["architecture"] == name
    x = image(name, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@models("checkpoint_path", REPRESENTATIVES)
def test_checkpoint_path_and_load_official(name, tmp_path):
    source = small(name, num_classes=10).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    # BiFormer's `load_official` adopts the published padding, which is equal where the regions divide the maps.
    x = image(name, 224 if family(name) == "biformer" else 64)
    with torch.no_grad():
        expected = source(x)
        assert torch.equal(small(name, num_classes=10, checkpoint_path=tmp_path / "weights.pth").eval()(x), expected)
        target = small(name, num_classes=10).eval()
        report = backbones.load_official(target, source.state_dict())
        assert set(report.loaded) == set(source.state_dict())
        assert torch.equal(target(x), expected)


@models("features", DISTINCT)
def test_features_only(name):
    """Channels and reductions are those of `feature_info`, also for sizes that the stride does not divide."""
    model = small(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    fixed = cfg_of(name)["fixed_input_size"]
    inputs = [image(name, 96)] if fixed else [image(name, 96), torch.randn(2, model.in_chans, 71, 103)]
    for x in inputs:
        maps = model(x)
        for out, width, reduction in zip(maps, channels, reductions, strict=True):
            expected = (x.shape[0], width, *(math.ceil(side / reduction) for side in x.shape[2:]))
            assert out.shape == expected
            assert out.is_contiguous() or name.startswith("scatterformer")
            assert out.isfinite().all()


@models("features_backward", REPRESENTATIVES)
def test_features_of_chosen_levels_have_all_gradients(name):
    """Pruning leaves no unused parameters, which DistributedDataParallel would wait for."""
    for indices in ((0,), (0, 1), (1, 2)):
        model = small(name, features_only=True, out_indices=indices).train()
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


@models("intermediates", DISTINCT)
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
        torch.testing.assert_close(normed[0], as_map(model, features, x))
        if family(name) != "davit":  # its norm follows the pooling
            assert not torch.equal(normed[0], maps[-1])
        early = model.forward_intermediates(x, indices=[0, -2], stop_early=True, intermediates_only=True)
        for out, expected in zip(early, (maps[0], maps[-2]), strict=True):
            assert torch.equal(out, expected)
        if is_channels_last(model) or family(name) == "davit":
            nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
            assert torch.equal(nhwc[0].permute(0, 3, 1, 2), maps[0])
        elif features.dim() == 3:
            tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
            assert torch.equal(tokens[0].transpose(1, 2), maps[0].flatten(2))
        model.set_grad_checkpointing()
        torch.testing.assert_close(model.forward_intermediates(x)[0], features)
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NCWH")


@models("prune", REPRESENTATIVES)
def test_prune(name):
    model = small(name, num_classes=10).eval()
    x = image(name, 64)
    with torch.no_grad():
        _, maps = model.forward_intermediates(x)
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        final, pruned = model.forward_intermediates(x, [0, 1])
        assert torch.equal(pruned[1], maps[1])
        if final.dim() == 4:  # timm's ViTs keep the final norm
            assert torch.equal(as_map(model, final, x), maps[1])
        assert model.num_features == maps[1].shape[1]
        model.reset_classifier(5, "avg")
        assert model(x).shape == (1, 5)


@pytest.mark.parametrize("channels", [1, 6])
@models("other_channels", REPRESENTATIVES)
def test_other_channels(name, channels):
    model = small(name, in_chans=channels, num_classes=10).eval()
    assert model.in_chans == channels
    assert model(image(name, 33, channels=channels)).shape == (1, 10)


@models("other_sizes", REPRESENTATIVES)
def test_other_sizes(name):
    model = small(name, in_chans=1).eval()
    for height, width in [(1, 1), (97, 65), (31, 224)]:
        assert model(torch.randn(1, 1, height, width)).isfinite().all()


@models("groups", NAMES)
def test_parameter_groups(name):
    """Every parameter is in a group; groups are in the order of the forward pass."""
    model = timm.create_model(name, device="meta", num_classes=10)
    names = sorted((parameter for parameter, _ in model.named_parameters()), key=forward_order)
    if family(name) not in ("biformer", "scatterformer"):
        names = [parameter for parameter, _ in model.named_parameters()]
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == set(names)
        order = [groups[parameter] for parameter in names]
        assert order == sorted(order)
        assert groups[names[0]] == 0
        classifier = model.default_cfg["classifier"]
        assert groups[f"{classifier}.weight"] == max(groups.values())
        if is_channels_last(model):
            assert groups["norm.weight"] < groups["head.weight"]
    if hasattr(model, "stage_list"):
        blocks = sum(len(getattr(stage, "blocks", [stage])) for stage in model.stage_list())
        assert len(set(groups.values())) >= blocks + 2


@models("layer_decay", REPRESENTATIVES)
def test_optimizer_with_layer_decay(name):
    """Biases, norms, layer scales and position embeddings are not decayed; the stem has the lowest learning rate."""
    model = small(name, num_classes=10)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    not_decayed = {"*.bias", "pos_embed", "cls_token", "time_embed", "*.rpb"}
    first, last, scale = next(iter(names.values())), model.default_cfg["classifier"] + ".weight", {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            key = names.pop(id(parameter))
            scale[key] = group["lr_scale"]
            decayed = parameter.ndim > 1 and not any(fnmatch(key, pattern) for pattern in not_decayed)
            assert (group["weight_decay"] > 0) == decayed, key
    assert not names
    assert scale[last] == 1.0
    assert scale[first] == min(scale.values()) < 1.0


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@models("torchscript", REPRESENTATIVES)
def test_torchscript(name):
    with set_scriptable(True):
        model = small(name).eval()
    x = image(name, 128)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def traced(model: nn.Module, train: bool = False) -> nn.Module:
    train_nodes, eval_nodes = get_graph_node_names(model)
    return create_feature_extractor(model, return_nodes=[(train_nodes if train else eval_nodes)[-1]])


@models("fx_forward", REPRESENTATIVES)
def test_fx_forward_is_exact(name):
    pytest.importorskip("torchvision")
    model = small(name).eval()
    x = image(name, 128)
    graph = traced(model)
    with torch.no_grad():
        for inputs in {(x,), (x, *pose_of(model, x))}:
            (out,) = graph(*inputs).values()
            assert torch.equal(out, model(*inputs))


@models("fx_backward", REPRESENTATIVES)
def test_fx_backward(name):
    pytest.importorskip("torchvision")
    model = small(name, num_classes=42).train()
    x = image(name, 128, batch=2)
    pose, graph = pose_of(model, x), traced(model, train=True)
    (out,) = graph(x, *pose).values()
    out.mean().backward()
    assert out.shape == (2, 42)
    assert_all_grads(graph)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@models("torchscript", REPRESENTATIVES)
def test_fx_torchscript(name):
    pytest.importorskip("torchvision")
    with set_scriptable(True):
        model = small(name).eval()
    x = image(name, 128)
    with torch.no_grad():
        (out,) = torch.jit.script(traced(model))(x).values()
        torch.testing.assert_close(out, model(x))


@models("compile", REPRESENTATIVES)
def test_compile_is_one_graph(name):
    """One graph with its backward pass, without code generation."""
    model = small(name, num_classes=10).eval()
    x = image(name, 64)
    inputs = (x, *pose_of(model, x))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = compiled(*inputs)
    torch.testing.assert_close(out, model(*inputs))
    out.square().mean().backward()
    if not getattr(model, "paat", ()):
        assert_all_grads(model)


@models("compile", REPRESENTATIVES)
def test_compile_of_training_is_one_graph(name):
    """With stochastic depth, whose random numbers are those of the eager model, for one static shape."""
    rates = {} if name.startswith("scatterformer") else {"drop_path_rate": 0.5}
    model = small(name, num_classes=10, **rates).train()
    x = image(name, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    results = []
    for function in (model, compiled):
        model.zero_grad()
        torch.manual_seed(1)
        out = function(x)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for got, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@models("export", REPRESENTATIVES)
def test_export(name):
    model = small(name).eval()
    x = image(name, 96)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x))


@models("export", REPRESENTATIVES)
def test_export_with_any_batch_size(name):
    model = small(name).eval()
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=32)}}
    program = torch.export.export(model, (image(name, 64, batch=2),), dynamic_shapes=dynamic).module()
    for batch in (1, 3):
        x = image(name, 64, batch=batch)
        torch.testing.assert_close(program(x), model(x))


@models("safetensors", DISTINCT)
def test_safetensors_round_trip(name, tmp_path):
    """No tensors share memory, and the loaded model has bitwise equal outputs."""
    source, target = small(name).eval(), small(name).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = image(name, 64)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


@models("meta", TAGGED)
def test_shapes_without_memory(name):
    """The full model on the meta device, at the input size of its cfg."""
    model = timm.create_model(name, device="meta").eval()
    cfg = model.default_cfg
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = as_map(model, model.forward_features(x), x)
    size = cfg["pool_size"] or [side // 16 for side in x.shape[-2:]]
    assert features.shape == (1, model.num_features, *size)
    assert model(x).shape == (1, cfg["num_classes"])


@models("bfloat16", REPRESENTATIVES)
def test_autocast_and_bfloat16(name):
    model = small(name).eval()
    x = image(name, 96)
    with torch.no_grad():
        expected = model(x)
        bound = 0.05 * max(1.0, expected.abs().max().item())
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x) - expected).abs().max() < bound
        half = small(name, dtype=torch.bfloat16).eval()
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        half.load_state_dict(model.state_dict())
        assert (half(x.bfloat16()).float() - expected).abs().max() < bound


@models("double", REPRESENTATIVES)
def test_to_empty_device_and_double(name):
    model = small(name, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert small(name).double().eval()(image(name, 96).double()).dtype == torch.double
