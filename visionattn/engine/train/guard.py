"""Stops a run before a loss or gradient that is not finite reaches the weights, or passes over a few such steps."""

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from visionattn.engine.train.hooks import any_rank
from visionattn.engine.train.replay import write_dump
from visionattn.errors import CheckpointError, TrainingError

__all__ = ["FiniteGuard", "image_names"]


def image_names(batch: Any) -> list[str]:
    """The image files of a batch as mmdet or mmseg pack it, in any nesting."""
    names: list[str] = []
    if hasattr(batch, "metainfo"):
        names += [str(batch.metainfo[key]) for key in ("img_path", "filename") if batch.metainfo.get(key)][:1]
    elif isinstance(batch, dict):
        for value in batch.values():
            names += image_names(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            names += image_names(value)
    return names


class FiniteGuard(Hook):
    """Checks the loss before the backward pass and the gradients before each optimizer step, on all ranks.

    Where something is not finite on any rank, all ranks raise `TrainingError` before the step; those on which it
    is write ``nonfinite_iter_N_rank_R.json``, with the batch's image names, and ``nonfinite_iter_N_rank_R.pth``, which
    `visionattn.engine.train.replay` runs again, into the work dir. With ``config.skip_nonfinite = N`` the first N such
    iterations of a process's life are reported and take no step, and the run goes on. Under mixed precision with
    loss scaling, gradients that overflow are the scaler's to skip, and it does so before this.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.batch: Any = None
        self.skips = int(runner.cfg.get("skip_nonfinite") or 0)
        self.skipped: list[int] = []
        self.buffers: dict[str, Tensor] = {}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch, to be able to name its images, and what a forward pass changes, to be able to undo it."""
        self.batch = data_batch
        if len(self.skipped) < self.skips:
            self.buffers = {n: b.clone() for n, b in runner.model.named_buffers()}

    def install(self, wrapper: OptimWrapper) -> None:
        """Watch an optimizer wrapper, or each one of a dict of them."""
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for single in wrappers:
            single.optimizer.register_step_pre_hook(self._before_step)
            single.update_params = self._checked(single, single.update_params)

    def _checked(self, wrapper: OptimWrapper, update_params: Any) -> Any:
        def checked(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if any_rank(bad := not bool(torch.isfinite(loss.detach()).all())):
                self._met("loss", bad, [])
                # one without a gradient in place of the loss, so that counters and, across processes, the
                # exchange of gradients go their usual way
                loss = sum(p.sum() * 0 for p in self.runner.model.parameters() if p.requires_grad)
            update_params(loss, *args, **kwargs)

        return checked

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf")) if gradients else torch.zeros(())
        if any_rank(bad := not bool(torch.isfinite(largest))):
            names = [n for n, p in self.runner.model.named_parameters() if not _finite(p.grad)]
            self._met("gradient", bad, names)
        elif self.runner.iter + 1 not in self.skipped:
            return
        for parameter in parameters:  # an optimizer leaves parameters without a gradient as they are
            parameter.grad = None

    def _met(self, what: str, here: bool, parameters: list[str]) -> None:
        iteration = self.runner.iter + 1
        stem = Path(self.runner.work_dir) / f"nonfinite_iter_{iteration}_rank_{get_rank()}"
        file, names = stem.with_suffix(".json"), image_names(self.batch)
        if here:
            record = {
                "iteration": iteration,
                "what": what,
                "images": names,
                "parameters": parameters[:20],
                "lr": {k: v[0] for k, v in self.runner.optim_wrapper.get_lr().items()},
            }
            file.write_text(json.dumps(record, indent=1))
            self._dump(stem.with_suffix(".pth"), record)
        shown = ", ".join(Path(n).name for n in names[:4]) + (", ..." if len(names) > 4 else "")
        where = f"images {shown}, see {file}" if here else "on another process, see nonfinite_*.json in the work dir"
        met = f"the {what} is not finite at iteration {iteration} ({where}); no step was taken with it"
        if len(self.skipped) < self.skips:
            self.skipped.append(iteration)
            with torch.no_grad():  # running statistics of norms have seen it too
                for name, buffer in self.runner.model.named_buffers():
                    buffer.copy_(self.buffers[name])
            self.runner.logger.warning(met)
            self.runner.progress.console.print(f"{met}; skipped, {len(self.skipped)} of at most {self.skips}")
            return
        before = f", after {self.skips} such iterations were skipped" if self.skips else ""
        raise TrainingError(
            f"{met}{before}. Look at these images and their annotations, run visionattn replay "
            f"{stem.with_suffix('.pth')}, or lower the learning rate (optim_wrapper.optimizer.lr), then --resume"
        )

    def _dump(self, path: Path, record: dict[str, Any]) -> None:
        wrapper = self.runner.optim_wrapper
        kind = type(wrapper).__name__
        autocast = {"BF16OptimWrapper": "bfloat16", "AmpOptimWrapper": "float16"}.get(kind)
        facts = {
            **record,
            "rank": get_rank(),
            "seed": self.runner.seed,
            "autocast": str(getattr(wrapper, "cast_dtype", None) or autocast or ""),
            "config_name": Path(self.runner.cfg.filename).name if self.runner.cfg.filename else None,
        }
        try:
            write_dump(path, self.runner.bare_model, self.batch, facts)
        except CheckpointError as error:  # a full disk must not hide why the run stops
            self.runner.logger.warning("the dump was not written: %s", error)


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())
