"""Layer-wise learning rate decay for the backbones of this package and of timm."""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from timm.models import group_parameters
from torch import nn

from visionattn.engine.registry import CONSTRUCTORS
from visionattn.errors import ConfigError

__all__ = ["LayerDecayOptimizerConstructor", "layer_factors"]


def layer_factors(model: nn.Module, rate: float) -> tuple[dict[str, float], set[str]]:
    """Return the learning rate factors of a model with timm backbones (BEiT, arXiv 2106.08254).

    Of a backbone with layers 0 (the stem) to L - 1, layer i has the factor ``rate ** (L - i)``. All other parameters,
    such as necks, heads and output norms of the backbone, have the factor 1.

    Args:
        model: contains a `visionattn.Backbone` or a timm model.
        rate: the factor from each layer to the one below it.

    Returns:
        The factor of each parameter, by name, and the names of the parameters without weight decay according to the
        backbones.

    Raises:
        ConfigError: no module of the model defines its layers.
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    flat: set[str] = set()
    done: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(other) for other in done):
            continue
        if hasattr(module, "layer_ids"):
            ids = module.layer_ids()
        elif hasattr(module, "group_matcher"):
            ids = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            head = getattr(module, "get_classifier", nn.Identity)()
            own = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
            ids = {name: number for name, number in ids.items() if id(module.get_parameter(name)) not in own}
        else:
            continue
        start = f"{path}." if path else ""
        done.append(start)
        count = max(ids.values()) + 1
        factors |= {f"{start}{name}": rate ** (count - number) for name, number in ids.items()}
        patterns = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        flat |= {n for n in factors for p in patterns if fnmatch(n, f"{start}{p}")}
    if not done:
        raise ConfigError("`layer_decay` requires a backbone of timm, as the model has none whose layers are known")
    return factors, flat


@CONSTRUCTORS.register_module()
class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """The optimizer constructor of mmengine with layer-wise learning rate decay; see `layer_factors`.

    ``paramwise_cfg`` accepts the keys of mmengine, whose learning rate factors are multiplied with those of the layers,
    and ``layer_decay_rate``, in (0, 1]. Parameters that the backbone excludes (``no_weight_decay``) have no weight
    decay, and neither have vectors, such as norms and biases, unless ``norm_decay_mult``, ``bias_decay_mult``,
    ``flat_decay_mult`` or ``custom_keys`` set it.

    Args:
        optim_wrapper_cfg, paramwise_cfg: see mmengine.

    Raises:
        ConfigError: ``layer_decay_rate`` is missing or out of range, or the optimizer has no ``lr``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate = paramwise_cfg.pop("layer_decay_rate", None)
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            where = "optim_wrapper.paramwise_cfg.layer_decay_rate"
            raise ConfigError(f"{where} must be in (0, 1], got {self.rate!r}")
        if "lr" not in optim_wrapper_cfg["optimizer"]:
            raise ConfigError("optim_wrapper.optimizer.lr is required by layer_decay_rate")
        if optim_wrapper_cfg["optimizer"].get("weight_decay") is not None:
            paramwise_cfg.setdefault("flat_decay_mult", 0.0)
        super().__init__(
            optim_wrapper_cfg, paramwise_cfg or {"bypass_duplicate": False}
        )  # mmengine ignores an empty one

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        """Append one parameter group for each trainable parameter; called by mmengine for the model and its modules."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        factors, flat = layer_factors(module, self.rate)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        custom = self.paramwise_cfg.get("custom_keys", {})
        for group in params:
            name = names[id(group["params"][0])]
            group["lr"] = group.get("lr", self.base_lr) * factors[name]
            if name in flat and self.base_wd is not None and not _sets_decay(custom, name):
                group["weight_decay"] = 0.0


def _sets_decay(custom: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Return True if the entry of ``custom_keys`` that mmengine uses for a parameter has ``decay_mult``."""
    found = sorted((key for key in custom if key in name), key=lambda key: (-len(key), key))
    return bool(found) and "decay_mult" in custom[found[0]]
