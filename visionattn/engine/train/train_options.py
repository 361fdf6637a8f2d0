"""Options of a training run that change its config: mixed precision, averaged weights, accumulation, W&B."""

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
"""File in the work dir with the name of the run at W&B, so that a resumed run goes on there."""


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """mmengine's optimizer wrapper with the forward pass in bfloat16 autocast, on CPU and CUDA.

    bfloat16 has the range of float32, so that the loss needs no scaling; mmengine's ``AmpOptimWrapper`` scales it
    for float16 and refuses to run without a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass and the loss."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """mmengine's W&B backend, without the upload of every Python file below the current folder."""

    def add_config(self, config: Config, **_: Any) -> None:
        """Send the config; a resumed run may have changed it."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)


def use_amp(config: Config, name: str) -> None:
    """float16 with loss scaling on CUDA, bfloat16 on a CPU; the config's own mixed precision stays as it is."""
    kind = str(config.optim_wrapper.get("type", "OptimWrapper")).rsplit(".", 1)[-1]
    if kind not in ("OptimWrapper", "AmpOptimWrapper", "BF16OptimWrapper"):
        raise ConfigError(f"{name}: --amp cannot be combined with optim_wrapper type={kind!r}")
    if torch.cuda.is_available():
        if kind != "BF16OptimWrapper":
            config.optim_wrapper.type = "AmpOptimWrapper"
            config.optim_wrapper.setdefault("loss_scale", "dynamic")
        return
    config.optim_wrapper.type = "visionattn.BF16OptimWrapper"
    for key in ("loss_scale", "dtype", "use_fsdp"):
        config.optim_wrapper.pop(key, None)


def use_ema(config: Config, momentum: float | None) -> None:
    """Average the weights over the run with mmengine's EMAHook, as mmdet's RTMDet and YOLOX configs do.

    Args:
        momentum: share of the new weights in each iteration's average; None keeps that of an EMAHook in the config,
            else takes 0.0002. In the first few thousand iterations it is larger.
    """
    if momentum is not None and not 0 < momentum < 0.5:
        raise ConfigError(
            f"--ema {momentum:g}: is the share of new weights in each step, above 0 and below 0.5, "
            "such as 0.0002 (others call that a decay of 0.9998)"
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
    """Take one optimizer step for every ``count`` iterations, with the mean of their gradients.

    Everything that the config counts in iterations stays counted in iterations, the learning rate's schedule too.
    """
    if count < 1:
        raise ConfigError(f"--accumulate {count}: give 1 or more iterations for each optimizer step")
    kind = str(config.optim_wrapper.get("type", "OptimWrapper")).rsplit(".", 1)[-1]
    if not kind.endswith("OptimWrapper"):
        raise ConfigError(f"{name}: --accumulate cannot be combined with optim_wrapper type={kind!r}")
    config.optim_wrapper.accumulative_counts = count


def tolerate(config: Config, skip_nonfinite: int, max_bad_samples: int) -> None:
    """Let a run go on past a few iterations that are not finite, and without a few samples that cannot be read."""
    for name, value in (("skip_nonfinite", skip_nonfinite), ("max_bad_samples", max_bad_samples)):
        if value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give a whole number from 0 on")
        if value:
            config[name] = value


def be_deterministic(config: Config) -> None:
    """PyTorch's deterministic algorithms, on cuDNN and cuBLAS too; where an operator has none, it says so and stops."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    config.randomness = {**(config.get("randomness") or {}), "deterministic": True}


def use_wandb(config: Config, project: str | None, folder: Path, resumed: bool) -> None:
    """Send losses, metrics and the config to W&B, in addition to the files in the work dir.

    Args:
        project: at W&B; None leaves it to the environment (WANDB_PROJECT), else wandb's default.
        folder: the work dir.
        resumed: go on in the run at W&B that the work dir names.
    """
    if importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError("--wandb: wandb is not installed; run: pip install wandb")
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
