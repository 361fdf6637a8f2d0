"""Put an attention module for maps after modules of a convolutional network of timm; all other names stay."""

import functools
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
from visionattn.layers.replace import ReplaceReport
from visionattn.layers.ulsam import ULSAM

__all__ = ["INSERTED", "insert_after"]

INSERTED: dict[str, type[nn.Module]] = {"ela": EfficientLocalAttention, "ulsam": ULSAM}

# Where each block has a place for channel attention (`se`), and what gives the number of channels there.
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
    """Put ELA or ULSAM into a convolutional network, in place.

    By default: in ResNets (and ResNeXt, SE-ResNet, ...) at the end of each residual branch, before it is added; in
    MobileNets, EfficientNets and their like after each depthwise convolution (after squeeze and excitation, where
    there is one; after the expansion, where there is no depthwise convolution); in ConvNeXts after the depthwise
    convolution of each block.

    Parameters that were there keep their names, so weights of the plain model load with ``strict=False``.

    Args:
        model: also with ``features_only=True``, and as part of something larger.
        attention: ``"ela"`` or ``"ulsam"``.
        where: what to insert after, if not the default: a pattern as of a shell for names of modules, such as
            ``"layer3"`` or ``"blocks.*.conv_dw"``, a function of the name, or a class. They must give one map
            ``[B, C, H, W]``. Norms are refused, because converting a model to synchronised ones would lose the
            module; name the block, convolution or activation.
        **options: to the module's constructor: ``variant``, ``num_splits``, ... ``dim`` is found out, and can be given
            where that fails. ELA's ``gn_groups``, and its ``conv_groups`` where a group has several channels, are
            reduced to what divides ``dim`` unless given.

    Returns:
        What was put in, and what is new.

    Raises:
        ValueError: an unknown attention, nothing to insert after, a module after which nothing can be inserted, or an
            option out of its range. The model is then as it was.
    """
    if attention not in INSERTED:
        raise ValueError(f"attention={attention!r} must be one of {tuple(INSERTED)}")
    places = list(_defaults(model) if where is None else _matching(model, where))
    if not places:
        names = [name for name, _ in model.named_modules() if name]
        hint = f"; it has {', '.join(names[:3])}, ..." if names else ""
        families = "has no block of ResNet, ConvNeXt, MobileNet or EfficientNet of timm; give where"
        raise ValueError(
            f"model={type(model).__name__} {families}" if where is None else f"where={where!r} matches no module{hint}"
        )
    made, notes = [], []
    for name, module, slot in places:
        like = next(module.parameters(), None) if slot is None else next(getattr(module, slot).parameters())
        like = next(model.parameters()) if like is None else like
        dim = options.get("dim") or _channels(module if slot is None else getattr(module, slot), name)
        if isinstance(getattr(module, attention, None), nn.Module):
            raise ValueError(f"where={where!r} matches {name}, which has {attention} already")
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
            if not isinstance(target, nn.Sequential):  # that one runs all its modules already
                target.__class__ = _followed(type(target), attention)
        put.append(path)
        new += [_join(path, key) for key in inserted.state_dict()]
    return ReplaceReport(tuple(put), new=tuple(new), notes=tuple(notes))


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _empty(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _defaults(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Name, module and, for a place within a block, what gives its channels."""
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
        kind = type(module)
        if any(
            "norm" in cls.__name__.lower() for cls in kind.__mro__ if cls.__module__.startswith(("torch.nn", "timm"))
        ):
            raise ValueError(f"where={where!r} matches the norm {name}; name the block, convolution or activation")
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise ValueError(f"where={where!r} matches {name}, a {kind.__name__}, which gives no map")
        if isinstance(module, nn.Sequential) and kind.forward is not nn.Sequential.forward:
            raise ValueError(
                f"where={where!r} matches {name}, a {kind.__name__}, which runs its modules in a way of its own; name "
                "one of them"
            )
        yield name, module, None


def _channels(module: nn.Module, name: str) -> int:
    """Channels that a module gives, by its last layer that says so."""
    found = None
    for inner in module.modules():
        for attribute in ("num_features", "out_channels", "out_features"):
            value = getattr(inner, attribute, None)
            if isinstance(value, int):
                found = value
                break
    if found is None:
        raise ValueError(f"dim must be given: {name}, a {type(module).__name__}, does not tell its channels")
    return found


def _fitting(dim: int, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Options of ELA with groups that divide the channels, and what was changed."""
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
    """A subclass whose result goes through the child named `attention`; the same for the same class."""

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
