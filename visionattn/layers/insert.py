"""Insert ELA or ULSAM into timm's convolutional networks, or replace blocks, without renaming other parameters."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    UniversalInvertedResidual,
)
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from visionattn.layers.ela import VARIANTS, EfficientLocalAttention
from visionattn.layers.replace.report import ReplaceReport, some
from visionattn.layers.ulsam import ULSAM

__all__ = ["INSERTED", "insert_after", "replace_blocks"]

INSERTED: dict[str, type[nn.Module]] = {"ela": EfficientLocalAttention, "ulsam": ULSAM}

# Blocks with a slot for channel attention (`se`), and the submodule that determines the channels there.
_SLOTS: dict[type[nn.Module], tuple[str, ...]] = {
    BasicBlock: ("bn2",),
    Bottleneck: ("bn3",),
    DepthwiseSeparableConv: ("bn1",),
    InvertedResidual: ("bn2",),
    EdgeResidual: ("bn1",),
    UniversalInvertedResidual: ("dw_mid", "pw_exp"),
}


def insert_after(
    model: nn.Module, attention: str, where: str | type[nn.Module] | Callable[[str], bool] | None = None, **options: Any
) -> ReplaceReport:
    """Insert ELA or ULSAM into a convolutional network, in place.

    Default positions: ResNets (ResNeXt, SE-ResNet, ...): at the end of each residual branch, before the addition;
    MobileNets and EfficientNets: after each depthwise convolution (after squeeze-and-excitation if there is one, after
    the expansion if there is no depthwise convolution); ConvNeXts: after the depthwise convolution of each block.

    Existing parameters keep their names, so weights of the original model load with ``strict=False``.

    Args:
        model: a timm model, possibly with ``features_only=True``, or a module that contains one.
        attention: ``"ela"`` or ``"ulsam"``.
        where: modules to insert after instead of the default: a shell-style pattern of module names, such as
            ``"layer3"`` or ``"blocks.*.conv_dw"``, a predicate of the name, or a class. The modules must return one map
            ``[B, C, H, W]``. Norms are not allowed, because converting the model to synchronized batch norm would
            remove the inserted module; use the block, convolution or activation.
        **options: arguments of the inserted module, such as `variant` or `num_splits`. `dim` is inferred unless given.
            `gn_groups` and, for groups of several channels, `conv_groups` of ELA are reduced to divisors of `dim`
            unless given.

    Returns:
        A report of the inserted modules and new parameters.

    Raises:
        ValueError: if the attention is unknown, no module matches, a module is not supported, or an option is out of
            range. The model is left unchanged.
    """
    if attention not in INSERTED:
        raise ValueError(f"`attention` must be one of {tuple(INSERTED)}, got {attention!r}")
    places = list(_defaults(model) if where is None else _matching(model, where))
    if not places:
        if where is None:
            raise ValueError(
                f"`where` must be given, because {type(model).__name__} has no ResNet, ConvNeXt, MobileNet or "
                "EfficientNet blocks of timm"
            )
        names = ", ".join(name for name, _ in list(model.named_modules())[1:4])
        raise ValueError(f"`where` must match a module name{f' such as {names}' if names else ''}, got {where!r}")
    _check_options(attention, options)
    made, notes = [], []
    for name, module, slot in places:
        like = next(module.parameters(), None) if slot is None else next(getattr(module, slot).parameters())
        like = next(model.parameters()) if like is None else like
        dim = options.get("dim") or _channels(module if slot is None else getattr(module, slot), name)
        if isinstance(getattr(module, attention, None), nn.Module):
            raise ValueError(f"`where`={where!r} matches {name}, which already has {attention}")
        own = {k: v for k, v in options.items() if k != "dim"}
        if attention == "ela":
            own, note = _fitting(dim, own)
            notes += [note] if note and note not in notes else []
        made.append(INSERTED[attention](dim, **own, device=like.device, dtype=like.dtype).train(module.training))
    put, new = [], []
    for (name, module, slot), inserted in zip(places, made, strict=True):
        if slot is not None and _empty(module.se):
            path = _join(name, "se")
            module.se = inserted
        else:
            target, name = (module, name) if slot is None else (module.se, _join(name, "se"))
            path = _join(name, attention)
            target.add_module(attention, inserted)
            if not isinstance(target, nn.Sequential):  # Sequential runs all its children
                target.__class__ = _followed(type(target), attention)
        put.append(path)
        new += [_join(path, key) for key in inserted.state_dict()]
    return ReplaceReport(tuple(put), new=tuple(new), notes=tuple(notes))


def replace_blocks(
    model: nn.Module, attention: str, where: str | Callable[[str], bool], **options: Any
) -> ReplaceReport:
    """Replace blocks of a convolutional network by ULSAM, in place.

    The paper replaces blocks of MobileNet-V1 and V2 to reduce operations and parameters, such as
    ``where="blocks.3.[1-5]"`` of timm's ``mobilenetv1_100``, its five blocks of 512 channels with stride 1. The blocks
    are those of timm's ResNets, MobileNets, EfficientNets and ConvNeXts whose input and output have the same shape:
    stride 1 and equal channels. Other blocks that the pattern matches are kept, which the report notes.

    Args:
        model: a timm model, possibly with ``features_only=True``, or a module that contains one.
        attention: ``"ulsam"``.
        where: shell-style pattern of block names, or a predicate of the name.
        **options: arguments of ULSAM, such as `num_splits`.

    Returns:
        A report of the new modules, and of new and removed parameters.

    Raises:
        ValueError: if the attention is unknown, no block that can be replaced matches, or an option is out of range.
            The model is left unchanged.
    """
    if attention != "ulsam":
        raise ValueError(f"`attention` must be 'ulsam', got {attention!r}")
    if where is None:
        raise ValueError("`where` must be given, such as 'blocks.3.[1-5]'")
    _check_options(attention, options)
    blocks = {n: m for n, m in model.named_modules() if n and isinstance(m, (*_SLOTS, ConvNeXtBlock))}
    kept = {name: channels for name, block in blocks.items() if (channels := _kept_channels(block))}
    matched = [name for name in blocks if (fnmatchcase(name, where) if isinstance(where, str) else where(name))]
    chosen = [name for name in matched if name in kept]
    if not chosen:
        names = some(list(kept)) or "none in this model"
        raise ValueError(f"`where` must match a block with stride 1 and equal channels ({names}), got {where!r}")
    made = {}
    for name in chosen:
        like = next(blocks[name].parameters())
        own = {"dim": kept[name], **options, "device": like.device, "dtype": like.dtype}
        made[name] = ULSAM(**own).train(blocks[name].training)
    dropped = [f"{name}.{key}" for name in chosen for key in blocks[name].state_dict()]
    for name, module in made.items():
        model.set_submodule(name, module)
    new = [f"{name}.{key}" for name, module in made.items() for key in module.state_dict()]
    others = [name for name in matched if name not in kept]
    notes = (f"kept, because the stride or the channels differ: {some(others)}",) if others else ()
    return ReplaceReport(tuple(chosen), new=tuple(new), dropped=tuple(dropped), notes=notes)


def _kept_channels(block: nn.Module) -> int | None:
    """Return the channels of a block whose output has the shape of its input, and None for other blocks."""
    layers = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if any(layer.stride != (1, 1) for layer in layers):
        return None
    if isinstance(block, ConvNeXtBlock):
        first, last = block.conv_dw.in_channels, block.mlp.fc2.weight.shape[0]
        return first if first == last else None
    if isinstance(block, (BasicBlock, Bottleneck)):
        return block.conv1.in_channels if block.downsample is None else None
    first, last = layers[0].in_channels, [m for m in block.modules() if hasattr(m, "num_features")][-1].num_features
    return first if first == last else None


def _check_options(attention: str, options: dict[str, Any]) -> None:
    cls = INSERTED[attention]
    known = [name for name in inspect.signature(cls).parameters if name not in ("device", "dtype")]
    for name in options:
        if name not in known:
            raise ValueError(f"`{name}` is not an argument of {cls.__name__}; it must be one of {', '.join(known)}")


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _empty(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _defaults(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Yield name, module and, for a slot within a block, the submodule that determines its channels."""
    for name, module in model.named_modules():
        if isinstance(module, ConvNeXtBlock):
            yield _join(name, "conv_dw"), module.conv_dw, None
        for block, sources in _SLOTS.items():
            if isinstance(module, block):
                source = next((s for s in sources if not _empty(getattr(module, s))), None)
                if source is not None:
                    yield name, module, source
                break


def _matching(
    model: nn.Module, where: str | type[nn.Module] | Callable[[str], bool]
) -> Iterator[tuple[str, nn.Module, None]]:
    for name, module in model.named_modules():
        if isinstance(where, str):
            hit = fnmatchcase(name, where)
        elif isinstance(where, type):
            hit = isinstance(module, where)
        else:
            hit = where(name)
        if not (hit and name):
            continue
        cls = type(module)
        if any(
            "norm" in base.__name__.lower() for base in cls.__mro__ if base.__module__.startswith(("torch.nn", "timm"))
        ):
            raise ValueError(
                f"`where` must match blocks, convolutions or activations, got {where!r} with the norm {name}"
            )
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise ValueError(
                f"`where` must match modules that return a map, got {where!r} with the {cls.__name__} {name}"
            )
        if isinstance(module, nn.Sequential) and cls.forward is not nn.Sequential.forward:
            raise ValueError(
                f"`where` must not match a Sequential with its own `forward`, got {where!r} with the {cls.__name__} "
                f"{name}; use one of its children"
            )
        yield name, module, None


def _channels(module: nn.Module, name: str) -> int:
    """Infer the output channels of a module from its last layer that has such an attribute."""
    found = None
    for inner in module.modules():
        for attribute in ("num_features", "out_channels", "out_features"):
            value = getattr(inner, attribute, None)
            if isinstance(value, int):
                found = value
                break
    if found is None:
        raise ValueError(f"`dim` must be given, because the channels of the {type(module).__name__} {name} are unknown")
    return found


def _fitting(dim: int, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the options of ELA with groups that divide the channels, and a description of the changes."""
    variant = options.get("variant", "B")
    if variant not in VARIANTS or "gn_groups" in options:
        return options, ""
    _, per_group, groups = VARIANTS[variant]
    changed = {}
    if dim % groups:
        changed["gn_groups"] = math.gcd(dim, groups)
    if "conv_groups" not in options and dim % per_group:
        changed["conv_groups"] = dim // math.gcd(dim, per_group)
    note = ", ".join(f"{k}={v}" for k, v in changed.items())
    return options | changed, f"{note} for {dim} channels" if changed else ""


@functools.cache
def _followed(cls: type[nn.Module], attention: str) -> type[nn.Module]:
    """Return a subclass whose output passes through the child `attention`; cached, so that classes are unique."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return getattr(self, attention)(super(made, self).forward(*args, **kwargs))

    def reduce(self: nn.Module, protocol: int) -> tuple:
        return _rebuild, (cls, attention), self.__dict__

    names = {"forward": forward, "__reduce_ex__": reduce, "__module__": cls.__module__}
    made = type(f"{cls.__name__}With{attention.upper()}", (cls,), names)
    return made


def _rebuild(cls: type[nn.Module], attention: str) -> nn.Module:
    made = _followed(cls, attention)
    return made.__new__(made)
