"""timm models as backbones of mmdet and mmseg models."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from visionattn.backbones import LoadReport, load_official
from visionattn.backbones._conversion import OUT_NORM, backbone_tensors
from visionattn.backbones._download import create_model
from visionattn.backbones.davit import is_davit, restore_drop_path
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError

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
            stages. Frozen layers stay in eval mode and receive no gradients.
        norm_eval: keep batch norms in eval mode, so that their statistics do not change.
        out_norm: apply a LayerNorm over the channels to each output, named ``norm0`` and so on by level, as in the
            published dense models of NAT, DiNAT and DaViT. The input of the next level is not normalized. None, the
            default, enables it for channels-last models of this package (NAT, DiNAT, ...) and for all DaViT models.
        init_cfg: initialization of mmengine; ``dict(type="Pretrained", checkpoint=PATH)`` loads the weights of this
            module.
        **kwargs: arguments of ``timm.create_model``, such as ``drop_path_rate`` or ``dilations``.

    Shapes: input ``[B, in_chans, H, W]``, output a tuple of contiguous ``[B, C_i, ceil(H / s_i), ceil(W / s_i)]``,
    with the channels C_i in ``num_features`` and the strides s_i in ``strides``.

    Raises:
        ConfigError: the model name, an argument or a level is unknown.
        CheckpointError: the weights cannot be read safely or do not match the model.
    """

    open_arguments = True  # the arguments of timm models are checked in `_create`

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool | str | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        out_norm: bool | None = None,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        weights = _read_weights(pretrained)
        self.net = restore_drop_path(_create(model_name, self.out_indices, pretrained, weights, kwargs))
        info = self.net.feature_info
        self.num_features: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        entrypoint = timm.models.model_entrypoint(_bare(model_name))
        own = entrypoint.__module__.startswith("visionattn.")
        if out_norm is None:  # models with `out_norms` have their own
            published = (own and _works_channels_last(self.net)) or is_davit(self.net)
            out_norm = published and not kwargs.get("out_norms")
        self.out_norm = bool(out_norm)
        if self.out_norm:
            eps = getattr(getattr(self.net, "model", self.net), "out_norm_eps", 1e-5)  # as published
            for level, channels in zip(self.out_indices, self.num_features, strict=True):
                self.add_module(f"norm{level}", norm := LayerNorm2d(channels, eps=eps))
                _load_norm(norm, f"norm{level}", weights)
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self._frozen = _first_stages(self.net, frozen_stages)
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

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

    def init_weights(self) -> None:
        """Apply ``init_cfg``, if given. timm has initialized the weights when the model was created."""
        given = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg or ())
        pretrained = [item for item in given if str(item.get("type")).rsplit(".", 1)[-1] == "Pretrained"]
        if others := [item for item in given if item not in pretrained]:
            self.init_cfg = others
            try:
                super().init_weights()
            finally:
                self.init_cfg = given
        for item in pretrained:
            self._load_pretrained(**{key: value for key, value in item.items() if key != "type"})
        self._is_init = True

    def _load_pretrained(self, checkpoint: str, prefix: str | None = None, map_location: Any = "cpu") -> None:
        """Load weights as mmengine's ``PretrainedInit`` does, but without unpickling objects."""
        weights = checkpoints.state_dict_of(checkpoints.load(checkpoint, map_location))
        if prefix:
            start = f"{prefix.removesuffix('.')}."
            weights = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        skipped = checkpoints.fit(self, {"state_dict": weights}, checkpoint, strict=False)
        if skipped:
            print_log("\n".join([f"not loaded from {checkpoint}:", *skipped]), logger="current")

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
        channels_last = str(getattr(self.net.output_fmt, "value", "NCHW")) == "NHWC"
        for level, feature in zip(self.out_indices, features, strict=True):
            if channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self.out_norm:
                feature = getattr(self, f"norm{level}")(feature)
            outputs.append(feature.contiguous())
        return tuple(outputs)


def _bare(model_name: str) -> str:
    return model_name.split(".", 1)[0]


def _read_weights(pretrained: bool | str | None) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint file, or those of the backbone if it has a detector or segmentor."""
    if not pretrained or pretrained is True:
        return {}
    weights = checkpoints.state_dict_of(checkpoints.read(Path(str(pretrained)).expanduser()))
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


def _create(
    model_name: str,
    out_indices: tuple[int, ...],
    pretrained: Any,
    weights: dict[str, Tensor],
    kwargs: dict[str, Any],
) -> nn.Module:
    if not timm.is_model(_bare(model_name)):
        close = difflib.get_close_matches(_bare(model_name), timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
        raise ConfigError(f"backbone model_name={model_name!r} is not known to timm; {hint}")
    if "checkpoint_path" in kwargs:
        raise ConfigError("backbone takes no argument `checkpoint_path`; use pretrained=PATH")
    if (
        not out_indices
        or any(not isinstance(i, int) for i in out_indices)
        or list(out_indices) != sorted(set(out_indices))
    ):
        raise ConfigError(f"backbone out_indices={out_indices} must be ascending integers, such as (0, 1, 2, 3)")
    extra: dict[str, Any] = {}
    if weights:
        extra["pretrained_cfg_overlay"] = {
            "state_dict": {re.sub(r"^net\.(model\.)?", "", k): v for k, v in weights.items()}
        }
    arguments = {"features_only": True, "out_indices": out_indices, **kwargs}
    try:
        if not extra:
            return _with_download(model_name, bool(pretrained), arguments)
        before = torch.get_rng_state()
        fresh = timm.create_model(model_name, **arguments)
        torch.set_rng_state(before)
        loaded = timm.create_model(model_name, pretrained=True, **extra, **arguments)
        _check_all_loaded(loaded, fresh, model_name, str(pretrained))
        return loaded
    except TypeError as error:
        raise ConfigError(f"backbone {model_name}: {_argument_problem(model_name, kwargs, error)}") from error
    except (AssertionError, IndexError) as error:
        raise ConfigError(
            f"backbone {model_name}: out_indices={out_indices} contains a level that the model does not have ({error})"
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{pretrained}: does not match the backbone {model_name} ({reason})") from error


def _with_download(model_name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create_model(model_name, pretrained, **arguments)
    except CheckpointError as error:
        raise CheckpointError(f"backbone {error} with pretrained=PATH, or pretrained=None") from error


def _check_all_loaded(loaded: nn.Module, fresh: nn.Module, model_name: str, path: str) -> None:
    """Raise `CheckpointError` if weights still have their random initial values, since timm skips missing tensors."""
    start = dict(fresh.named_parameters())
    added = [part for module in loaded.modules() for part in getattr(module, "not_pretrained", ())]
    weights = {  # not norms and biases, whose initial values may equal the pretrained ones
        n: p for n, p in loaded.named_parameters() if p.ndim > 1 and not any(part in n for part in added)
    }
    missing = [n for n, p in weights.items() if torch.equal(p, start[n])]
    if missing:
        raise CheckpointError(
            f"{path}: does not match the backbone {model_name}: {len(missing)} of {len(weights)} weights are missing, "
            f"such as {missing[0]}; use a checkpoint of this model"
        )


def _argument_problem(model_name: str, kwargs: dict[str, Any], error: TypeError) -> str:
    """Return a message that names the argument of the config which timm rejected."""
    for name in kwargs:
        if f"'{name}'" in str(error):
            accepted = [a for a in _accepted_arguments(model_name) if a != name]
            close = difflib.get_close_matches(name, accepted, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            return f"takes no argument {name!r}{hint}"
    return str(error)


def _accepted_arguments(model_name: str) -> list[str]:
    module = inspect.getmodule(timm.models.model_entrypoint(_bare(model_name)))
    names: set[str] = set()
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, nn.Module) and member.__module__ == module.__name__:
            names |= set(inspect.signature(member.__init__).parameters)
    return sorted(names - {"self", "kwargs"})


def _works_channels_last(net: nn.Module) -> bool:
    inner = getattr(net, "model", net)
    return str(getattr(inner, "output_fmt", "NCHW")).upper().endswith("NHWC")


def _first_stages(net: nn.Module, count: int) -> list[nn.Module]:
    """Return the leaf modules before the stages and in the first ``count`` stages, in timm's order of registration.

    A stage is an entry of ``feature_info`` whose module has parameters. Entries without parameters, such as the
    activation in the stem of a ResNet, belong to the stem.
    """
    if count < 0:
        return []
    inner = getattr(net, "model", net)
    named = list(inner.named_modules())
    names = [name for name, _ in named]
    stages = []
    for entry in net.feature_info.info:
        # feature nets rename "stages.0" to "stages_0" where they flatten a Sequential
        name = next((n for n in (entry["module"], entry["module"].replace(".", "_")) if n in names), None)
        if name is not None and any(True for _ in inner.get_submodule(name).parameters()):
            stages.append(name)
    if count > len(stages):
        raise ConfigError(f"backbone frozen_stages={count} must be -1 to {len(stages)}, the number of stages in use")
    if not stages:
        raise ConfigError("backbone frozen_stages must be -1, because the stages of this model are unknown")
    if count == 0:
        end = names.index(stages[0])
    else:
        last = stages[count - 1]
        end = 1 + max(i for i, name in enumerate(names) if name == last or name.startswith(f"{last}."))
    later = names[end:]
    return [module for name, module in named[:end] if name and not any(other.startswith(f"{name}.") for other in later)]
