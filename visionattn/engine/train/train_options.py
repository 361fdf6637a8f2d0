"""Training options that change the config: mixed precision, EMA, accumulation, fine-tuning."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from visionattn.engine.config.options import find_class
from visionattn.engine.registry import OPTIM_WRAPPERS
from visionattn.errors import ConfigError

__all__ = [
    "EMA_MOMENTUM",
    "BF16OptimWrapper",
    "accumulate",
    "be_deterministic",
    "freeze",
    "shard_optimizer",
    "stop_early",
    "tolerate",
    "use_amp",
    "use_ema",
    "use_layer_decay",
]

EMA_MOMENTUM = 0.0002
DEFAULT_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
SHARDED = "ZeroRedundancyOptimizer"
LAYER_DECAY = "visionattn.LayerDecayOptimizerConstructor"


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Optimizer wrapper with the forward pass under bfloat16 autocast, on CPU and CUDA.

    bfloat16 has the range of float32, so the loss needs no scaling. ``AmpOptimWrapper`` of mmengine scales the loss
    for float16 and requires a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return a context with autocast for the forward pass and the loss."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def use_amp(config: Config, name: str) -> None:
    """Enable mixed precision: float16 with loss scaling on CUDA, bfloat16 on CPUs.

    Args:
        config: changed in place, unless it already uses mixed precision.
        name: name of the config in error messages.

    Raises:
        ConfigError: the config has another type of optimizer wrapper.
    """
    kind = str(config.optim_wrapper.get("type", "OptimWrapper")).rsplit(".", 1)[-1]
    if kind not in ("OptimWrapper", "AmpOptimWrapper", "BF16OptimWrapper"):
        raise ConfigError(f"{name}: `amp` cannot be combined with optim_wrapper type={kind!r}")
    if torch.cuda.is_available():
        if kind != "BF16OptimWrapper":
            config.optim_wrapper.type = "AmpOptimWrapper"
            config.optim_wrapper.setdefault("loss_scale", "dynamic")
        return
    config.optim_wrapper.type = "visionattn.BF16OptimWrapper"
    for key in ("loss_scale", "dtype", "use_fsdp"):
        config.optim_wrapper.pop(key, None)


def use_ema(config: Config, momentum: float | None) -> None:
    """Enable an exponential moving average (EMA) of the weights with mmengine's EMAHook.

    Args:
        config: changed in place.
        momentum: weight of the new parameters in each update. None uses that of an EMAHook in the config, or 0.0002.
            It is larger in the first few thousand iterations, as in the RTMDet and YOLOX configs of mmdet.

    Raises:
        ConfigError: the momentum is not in (0, 0.5).
    """
    if momentum is not None and not 0 < momentum < 0.5:
        raise ConfigError(
            f"`ema` must be in (0, 0.5), got {momentum:g}; it is the weight of the new parameters in each update, "
            "such as 0.0002 for a decay of 0.9998"
        )
    hooks = list(config.get("custom_hooks") or [])
    for hook in hooks:
        if isinstance(hook, Mapping) and str(hook.get("type")).rsplit(".", 1)[-1] == "EMAHook":
            if momentum is not None:
                hook["momentum"] = momentum
            break
    else:
        hooks.append(
            dict(
                type="mmengine.EMAHook",
                ema_type="mmdet.ExpMomentumEMA",
                momentum=EMA_MOMENTUM if momentum is None else momentum,
                update_buffers=True,
                priority=49,
            )
        )
    config.custom_hooks = hooks


def accumulate(config: Config, count: int, name: str) -> None:
    """Accumulate gradients: take one optimizer step every ``count`` iterations, with the mean of their gradients.

    Intervals and learning rate schedules remain in units of iterations.

    Args:
        config: changed in place.
        count: number of iterations per optimizer step.
        name: name of the config in error messages.

    Raises:
        ConfigError: the count is below 1, or the optimizer wrapper does not support accumulation.
    """
    if count < 1:
        raise ConfigError(f"`accumulate` must be at least 1, got {count}")
    kind = str(config.optim_wrapper.get("type", "OptimWrapper")).rsplit(".", 1)[-1]
    if not kind.endswith("OptimWrapper"):
        raise ConfigError(f"{name}: `accumulate` cannot be combined with optim_wrapper type={kind!r}")
    config.optim_wrapper.accumulative_counts = count


def freeze(config: Config, stages: int | str, name: str) -> None:
    """Freeze the first stages of the backbone.

    Args:
        config: changed in place.
        stages: number of stages; 0 freezes only the stem, ``"all"`` the whole backbone.
        name: name of the config in error messages.

    Raises:
        ConfigError: the value is neither, or the backbone cannot be frozen. The number of stages is checked when the
            model is built.
    """
    if stages != "all" and (isinstance(stages, (bool, str)) or stages < 0):
        raise ConfigError(f"`freeze` must be a number of stages from 0, or 'all', got {stages!r}")
    backbone = config.model.get("backbone")
    kind = find_class((backbone or {}).get("type"), config.get("default_scope"))
    accepted = set() if kind is None else set(inspect.signature(kind).parameters)
    if "frozen_stages" not in accepted:
        what = f"model.backbone ({backbone['type']}) has no `frozen_stages`" if backbone else "has no model.backbone"
        raise ConfigError(f"{name}: `freeze` is not possible, as {what}")
    if stages == "all" and not getattr(kind, "freezes_all", False):
        raise ConfigError(f"{name}: `freeze`='all' requires a visionattn.Backbone, got {backbone['type']}")
    backbone.frozen_stages = stages


def use_layer_decay(config: Config, rate: float, name: str) -> None:
    """Use `visionattn.engine.train.finetune.layer_decay.LayerDecayOptimizerConstructor`.

    Args:
        config: changed in place.
        rate: factor of the learning rate from each layer to the one below it.
        name: name of the config in error messages.

    Raises:
        ConfigError: the rate is not in (0, 1], or the config constructs its optimizer in another way.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"`layer_decay` must be in (0, 1], got {rate:g}")
    wrapper = config.optim_wrapper
    before = str(wrapper.get("constructor") or DEFAULT_CONSTRUCTOR).rsplit(".", 1)[-1]
    if before not in (DEFAULT_CONSTRUCTOR, LAYER_DECAY.rsplit(".", 1)[-1]) or not wrapper.get("optimizer"):
        raise ConfigError(f"{name}: `layer_decay` cannot be combined with optim_wrapper.constructor={before!r}")
    wrapper.constructor = LAYER_DECAY
    wrapper.paramwise_cfg = {**(wrapper.get("paramwise_cfg") or {}), "layer_decay_rate": rate}


def shard_optimizer(config: Config, wanted: bool, distributed: bool, name: str) -> None:
    """Divide the state of the optimizer among the processes with `torch.distributed.optim.ZeroRedundancyOptimizer`.

    Results and checkpoints are those of the optimizer itself, so that a run can be resumed with and without it, and
    with another number of processes. With one process, the optimizer itself is used.

    Args:
        config: changed in place.
        wanted: use it if the config does not already.
        distributed: there are several processes.
        name: name of the config in error messages.

    Raises:
        ConfigError: the optimizer is not one of `torch.optim`, or there are several.
    """
    optimizer = config.optim_wrapper.get("optimizer")
    if isinstance(optimizer, Mapping) and str(optimizer.get("type")).rsplit(".", 1)[-1] == SHARDED:
        inner = {key: value for key, value in optimizer.items() if key != "optimizer_type"}
        inner["type"] = optimizer.get("optimizer_type")
    elif not wanted:
        return
    else:
        inner = dict(optimizer or {})
    kind = str(inner.get("type")).rsplit(".", 1)[-1]
    if not hasattr(torch.optim, kind):
        what = repr(kind) if optimizer else "several optimizers"
        raise ConfigError(f"{name}: `shard_optimizer` requires one optimizer of torch.optim, got {what}")
    inner["type"] = kind
    config.optim_wrapper.optimizer = {**inner, "type": SHARDED, "optimizer_type": kind} if distributed else inner


def stop_early(config: Config, patience: int, name: str) -> None:
    """Stop when the validation metric of ``save_best`` does not improve, and save the best checkpoint.

    Args:
        config: changed in place.
        patience: number of validations without improvement.
        name: name of the config in error messages.

    Raises:
        ConfigError: the number is below 1, or the config does not validate.
    """
    if patience < 1:
        raise ConfigError(f"`patience` must be at least 1, got {patience}")
    if not all(config.get(key) for key in ("val_dataloader", "val_evaluator")) or config.get("val_cfg") is None:
        raise ConfigError(f"{name}: `patience` requires a validation; set val_dataloader, val_evaluator and val_cfg")
    hooks = dict(config.get("default_hooks") or {})
    saver = hooks.get("checkpoint", {"type": "CheckpointHook", "interval": 1})
    if not isinstance(saver, Mapping):
        raise ConfigError(f"{name}: `patience` requires the checkpoint hook, but default_hooks.checkpoint is {saver!r}")
    config.default_hooks = {**hooks, "checkpoint": {**saver, "save_best": saver.get("save_best") or "auto"}}
    kind = "EarlyStoppingHook"
    others = [h for h in config.get("custom_hooks") or [] if str(h.get("type")).rsplit(".", 1)[-1] != kind]
    config.custom_hooks = [*others, dict(type=f"visionattn.{kind}", patience=patience)]


def tolerate(config: Config, skip_nonfinite: int, max_bad_samples: int) -> None:
    """Allow a number of iterations with NaN or infinite values and a number of unreadable samples.

    Args:
        config: changed in place.
        skip_nonfinite: number of iterations that are skipped.
        max_bad_samples: number of different samples that are skipped.

    Raises:
        ConfigError: a number is negative.
    """
    for name, value in (("skip_nonfinite", skip_nonfinite), ("max_bad_samples", max_bad_samples)):
        if value < 0:
            raise ConfigError(f"`{name}` must be at least 0, got {value}")
        if value:
            config[name] = value


def be_deterministic(config: Config) -> None:
    """Use deterministic algorithms of PyTorch, cuDNN and cuBLAS. Operators that have none raise an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialized
    config.randomness = {**(config.get("randomness") or {}), "deterministic": True}
