"""Training options that change the config: mixed precision, EMA, gradient accumulation, Weights & Biases."""

import importlib.util
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.visualization import WandbVisBackend
from torch import nn

from visionattn.engine.registry import OPTIM_WRAPPERS, VISBACKENDS
from visionattn.errors import ConfigError, MissingDependencyError

__all__ = [
    "EMA_MOMENTUM",
    "BF16OptimWrapper",
    "WandbBackend",
    "accumulate",
    "be_deterministic",
    "tolerate",
    "use_amp",
    "use_ema",
    "use_wandb",
]

EMA_MOMENTUM = 0.0002
WANDB_ID = "wandb_id"
"""File in the work dir with the id of the W&B run, for resuming."""


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


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """The W&B backend of mmengine, without uploading all Python files in the current folder."""

    def add_config(self, config: Config, **kwargs: Any) -> None:  # the signature of mmengine, which passes no kwargs
        """Log the config, which may differ from that of the run that is resumed."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)


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


def use_wandb(config: Config, project: str | None, folder: Path, resumed: bool) -> None:
    """Log losses, metrics and the config to Weights & Biases (W&B), in addition to the files in the work dir.

    Args:
        config: changed in place.
        project: name of the W&B project; None uses WANDB_PROJECT or the default of wandb.
        folder: the work dir.
        resumed: continue the W&B run of the work dir.

    Raises:
        MissingDependencyError: wandb is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError("`wandb` requires the package wandb; run: pip install wandb")
    file = folder / WANDB_ID
    if not (resumed and file.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12])
    init = {"id": file.read_text().strip(), "name": folder.name, "resume": "allow"}
    if project:
        init["project"] = project
    visualizer = dict(config.get("visualizer") or {"type": "Visualizer"})
    backends = [b for b in visualizer.get("vis_backends") or [] if "Wandb" not in str(b.get("type"))]
    visualizer["vis_backends"] = [*backends, {"type": "visionattn.WandbBackend", "init_kwargs": init}]
    config.visualizer = visualizer
