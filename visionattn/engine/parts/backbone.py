"""timm models as backbones of mmdet and mmseg models."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from visionattn.backbones import LoadReport, load_official
from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._weights import apply_settings, convert_for
from visionattn.backbones.davit import is_davit, restore_drop_path
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat.pretrained import load_pretrained
from visionattn.engine.parts.creation import bare_name, create_net
from visionattn.engine.parts.depth import freeze_stages, layer_ids, no_weight_decay
from visionattn.engine.parts.plugins import apply_plugins, changed_weights, load_changed, summary
from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError

__all__ = ["Backbone"]


@MODELS.register_module()
class Backbone(BaseModule):
    """A timm model that computes the feature maps for a neck or head.

    In a config: ``backbone=dict(type="visionattn.Backbone", model_name="dinat_mini", out_indices=(0, 1, 2, 3))``.

    Args:
        model_name: a model name of ``timm.create_model``, with or without a tag.
        out_indices: indices of the feature levels to return, in ascending order.
        pretrained: None or False for random weights; True for the pretrained weights that timm downloads; or the path
            of a checkpoint, as published by its authors or saved by timm or this package.
        frozen_stages: -1 trains all layers; 0 freezes the layers before the first stage; N also freezes the first N
            stages, each of which is one block in plain transformers; ``"all"`` freezes the whole timm model. Frozen
            layers stay in eval mode and receive no gradients. Output norms (`out_norm`) are always trained.
        norm_eval: keep batch norms in eval mode, so that their statistics do not change.
        out_norm: apply a LayerNorm over the channels to each output, named ``norm0`` and so on by level, as in the
            published dense models of NAT, DiNAT and DaViT. The input of the next level is not normalized. None, the
            default, enables it for channels-last models of this package (NAT, DiNAT, ...), except for ``dinat_nano``,
            whose blocks end with a batch norm, and for all DaViT models.
        plugins: attention modules that replace those of the timm model or are inserted into it, applied in order after
            pretrained weights of the original model are loaded; see `visionattn.engine.parts.plugins`. ``pretrained``
            may also be a checkpoint of the model with these modules. Frozen stages include their new modules.
        init_cfg: initialization of mmengine; ``dict(type="Pretrained", checkpoint=PATH)`` loads the weights of this
            module.
        **kwargs: arguments of ``timm.create_model``, such as ``drop_path_rate`` or ``dilations``.

    Shapes: input ``[B, in_chans, H, W]``, output a tuple of contiguous ``[B, C_i, ceil(H / s_i), ceil(W / s_i)]``,
    with the channels C_i in ``num_features`` and the strides s_i in ``strides``.

    Raises:
        ConfigError: the model name, an argument or a level is unknown.
        CheckpointError: the weights cannot be read safely or do not match the model.
    """

    open_arguments = True  # the arguments of timm models are checked in `create_net`
    own_types = ("plugins",)  # arguments whose types are not those of a registry, checked by `apply_plugins`
    freezes_all = True  # frozen_stages="all"

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool | str | None = None,
        frozen_stages: int | str = -1,
        norm_eval: bool = False,
        out_norm: bool | None = None,
        plugins: Sequence[Mapping[str, Any]] = (),
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        weights = _read_weights(pretrained)
        self._created = (model_name, kwargs, plugins or ())
        self.net, new, self._changes = self._make(pretrained, weights)
        self.new_tensors = {f"net.{name}" for name in new}  # of plugins, which the pretrained weights do not contain
        if self._changes and isinstance(pretrained, str) and not new:
            self._changes += f"; all weights from {pretrained}"
        info = self.net.feature_info
        self.num_features: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        entrypoint = timm.models.model_entrypoint(bare_name(model_name))
        own = entrypoint.__module__.startswith("visionattn.")
        if out_norm is None:  # models with `out_norms` have their own
            inner = getattr(self.net, "model", self.net)
            published = own and _works_channels_last(self.net) and getattr(inner, "OUT_NORM", True)
            published = published or is_davit(self.net)
            out_norm = published and not kwargs.get("out_norms")
        self.out_norm = bool(out_norm)
        if self.out_norm:
            eps = getattr(getattr(self.net, "model", self.net), "out_norm_eps", 1e-5)  # as published
            for level, channels in zip(self.out_indices, self.num_features, strict=True):
                self.add_module(f"norm{level}", norm := LayerNorm2d(channels, eps=eps))
                _load_norm(norm, f"norm{level}", weights)
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self._frozen = freeze_stages(self.net, *self._created, frozen_stages)
        self.register_load_state_dict_pre_hook(_accept_published)
        self.train()

    def _make(self, pretrained: Any, weights: Mapping[str, Tensor]) -> tuple[nn.Module, set[str], str]:
        """Create the timm model with its plugins, and load weights of the original model or of one with the plugins.

        Returns:
            The model, its tensors that the plugins have initialized, and a description of the plugins.
        """
        model_name, kwargs, plugins = self._created
        found = changed_weights(*self._created, weights, str(pretrained)) if plugins and weights else None
        original = (pretrained, weights) if found is None else (None, {})
        net = restore_drop_path(create_net(model_name, self.out_indices, *original, kwargs))
        reports = apply_plugins(net, plugins)
        if found is None:
            prefix = "model." if hasattr(net, "model") else ""
            return net, {f"{prefix}{name}" for report in reports for name in report.new}, summary(plugins, reports)
        load_changed(net, found, f"{pretrained}: does not match the backbone {model_name} with its plugins")
        return net, set(), summary(plugins, reports)

    def layer_ids(self) -> dict[str, int]:
        """Number the layers by depth, for layer-wise learning rate decay.

        Returns:
            Parameter name to layer, from 0 for the stem. Output norms are not included.

        Raises:
            ConfigError: the timm model does not define its layers (``group_matcher``).
        """
        return {f"net.{name}": number for name, number in layer_ids(self.net, *self._created).items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay according to the timm model, as fnmatch patterns."""
        return {f"net.{name}" for name in no_weight_decay(self.net, *self._created)}

    def load_weights(self, weights: Mapping[str, Tensor], source: str) -> list[str]:
        """Load the backbone of a classifier, detector or segmentor, as published or as saved by timm.

        Args:
            weights: the state dict of the checkpoint.
            source: its name, for error messages.

        Returns:
            The names of the parameters and buffers of this module that were loaded.

        Raises:
            CheckpointError: the weights do not fit.
        """
        prefix = "net.model." if hasattr(self.net, "model") else "net."
        try:
            if self._created[2]:
                raise TypeError
            report = self.load_official(weights)
        except TypeError:  # a model of timm, or with plugins
            net, new, _ = self._make(source, inside := _inside(weights))
            self.net.load_state_dict(net.state_dict())
            norms = [f"norm{level}" for level in self.out_indices if self.out_norm]
            loaded = [norm for norm in norms if _load_norm(getattr(self, norm), norm, inside)]
            own = [f"net.{name}" for name in net.state_dict() if name not in new]
            return [*own, *(f"{norm}.{key}" for norm in loaded for key in ("weight", "bias"))]
        own = self.state_dict()
        return [name if name in own else f"{prefix}{name}" for name in report.loaded]

    def load_official(self, state_dict: Mapping[str, Any]) -> LoadReport:
        """Load a published checkpoint including its output norms; see `visionattn.backbones.load_official`.

        Args:
            state_dict: the state dict of the checkpoint.

        Returns:
            A report with the parameter names of the timm model, and ``norm0`` and so on.
        """
        report = load_official(self.net, state_dict)
        weights = backbone_tensors(state_dict)
        original = {inner: name for name, inner in weights.renamed.items()}
        loaded, dropped, missing = list(report.loaded), dict(report.dropped), dict(report.missing)
        for name in [n for n in self.state_dict() if OUT_NORM.fullmatch(n)]:
            module, _ = name.split(".")
            if _load_norm(getattr(self, module), module, weights.state_dict):
                loaded.append(name)
                for inner in (name, _published_norm(name)):
                    dropped.pop(original.get(inner, inner), None)
            else:
                missing[name] = "the checkpoint has no output norm of this level; the weights are unchanged"
        return dataclasses.replace(report, loaded=tuple(loaded), dropped=dropped, missing=missing)

    def convert_published(self, weights: Mapping[str, Tensor]) -> Conversion:
        """Convert a published backbone to the parameter names of this module, without loading it.

        Args:
            weights: the weights of the backbone, by names without the prefix of a detector or segmentor. Other timm
                models than those of `load_official` have the names of timm and of torchvision.

        Raises:
            CheckpointError: no weight belongs to this architecture.
        """
        own = self.state_dict()
        inner = "net.model." if hasattr(self.net, "model") else "net."
        known = backbone_tensors(weights)
        try:
            conversion, _ = convert_for(self.net, weights)
        except TypeError:  # a model of timm
            conversion = known
            for name in list(conversion.state_dict):
                flat = re.sub(r"^([a-z_]+)\.(\d+)\.", r"\1_\2.", name)  # timm's feature wrapper
                conversion.rename(name, flat if f"{inner}{flat}" in own else name)
            known = backbone_tensors(weights)
        for name in list(conversion.state_dict):
            if not OUT_NORM.fullmatch(name) or f"{inner}{name}" in own:
                conversion.rename(name, f"{inner}{name}")
        conversion.interpolated = {f"{inner}{name}": text for name, text in conversion.interpolated.items()}
        original = {new: old for old, new in known.renamed.items()}
        for name in (n for n in own if OUT_NORM.fullmatch(n)):
            source = next((n for n in (name, _published_norm(name)) if n in known.state_dict), None)
            if source is not None:
                conversion.state_dict[name] = known.state_dict[source]
                first = original.get(source, source)
                conversion.dropped.pop(first, None)
                if first != name:
                    conversion.renamed[first] = name
        if not conversion.state_dict.keys() & own.keys():
            raise CheckpointError(
                f"the checkpoint has no weight of {type(getattr(self.net, 'model', self.net)).__name__}"
            )
        return conversion

    def init_weights(self) -> None:
        """Apply ``init_cfg``, if given, and log the plugins. The model was initialized when it was created."""
        if self._changes:
            print_log(f"backbone plugins: {self._changes}", logger="current")
        given = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg or ())
        pretrained = [item for item in given if str(item.get("type")).rsplit(".", 1)[-1] == "Pretrained"]
        if others := [item for item in given if item not in pretrained]:
            self.init_cfg = others
            try:
                super().init_weights()
            finally:
                self.init_cfg = given
        for item in pretrained:
            load_pretrained(self, **{key: value for key, value in item.items() if key != "type"})
        self._is_init = True

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules except frozen layers and, with ``norm_eval``, batch norms."""
        super().train(mode)
        for module in getattr(self, "_frozen", ()):
            module.training = False
        if getattr(self, "norm_eval", False):
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False
        return self

    def forward(self, x: Tensor, **inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: images, ``[B, in_chans, H, W]``.
            **inputs: further inputs of the timm model, such as the ``pose`` of `PoseVisionTransformer`. Those that
                are None are not passed on.

        Returns:
            One map per level; see the class for the shapes.
        """
        outputs = []
        features = self.net(x, **{name: value for name, value in inputs.items() if value is not None})
        channels_last = str(getattr(getattr(self.net, "output_fmt", None), "value", "NCHW")) == "NHWC"
        for level, feature in zip(self.out_indices, features, strict=True):
            if channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self.out_norm:
                feature = getattr(self, f"norm{level}")(feature)
            outputs.append(feature.contiguous())
        return tuple(outputs)


def _accept_published(
    backbone: Backbone, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *messages: list[str]
) -> None:
    """Convert published weights in `load_state_dict`, so that other runners than this package's load them too."""
    part = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    if not part or any(name.startswith("net.") for name in part):
        return
    try:
        conversion = backbone.convert_published(part)
    except CheckpointError:
        return  # reported as missing and unexpected names
    for name in part:
        del state_dict[f"{prefix}{name}"]
    state_dict.update({f"{prefix}{name}": value for name, value in conversion.state_dict.items()})
    apply_settings(backbone.net, conversion)


def _read_weights(pretrained: bool | str | None) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint file, or those of the backbone if it has a detector or segmentor."""
    if not pretrained or pretrained is True:
        return {}
    return _inside(checkpoints.state_dict_of(checkpoints.read(Path(str(pretrained)).expanduser())))


def _inside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inside = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    return inside or dict(weights)


def _published_norm(name: str) -> str:
    """Return the name of an output norm in published BiFormer checkpoints."""
    return name.replace("norm", "extra_norms.", 1)


def _load_norm(norm: nn.Module, name: str, weights: dict[str, Tensor]) -> bool:
    """Load an output norm if the checkpoint has it, as those of detectors and segmentors do, and return whether."""
    other = _published_norm(name)
    found = {key: weights.get(f"{name}.{key}", weights.get(f"{other}.{key}")) for key in ("weight", "bias")}
    fits = all(v is not None and v.shape == norm.weight.shape for v in found.values())
    if fits:
        norm.load_state_dict(found)
    return fits


def _works_channels_last(net: nn.Module) -> bool:
    inner = getattr(net, "model", net)
    return str(getattr(inner, "output_fmt", "NCHW")).upper().endswith("NHWC")
