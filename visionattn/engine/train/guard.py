"""Stop training before a NaN or infinite loss or gradient reaches the weights, or skip a number of such steps."""

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
    """Return the image files of a batch with data samples of mmdet or mmseg, nested to any depth."""
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
    """Check the loss before the backward pass and the gradients before each optimizer step, on all ranks.

    If a value is NaN or infinite on any rank, all ranks raise `TrainingError` before the step. The ranks with such a
    value write ``nonfinite_iter_N_rank_R.json`` with the image names of the batch, and
    ``nonfinite_iter_N_rank_R.pth`` for `visionattn.engine.train.replay`, to the work dir. With
    ``config.skip_nonfinite = N``, the first N such iterations of the process are reported and skipped instead.
    With loss scaling, steps whose gradients overflow are skipped by the gradient scaler before this check.

    Args:
        runner: the runner.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.batch: Any = None
        self.skips = int(runner.cfg.get("skip_nonfinite") or 0)
        self.skipped: list[int] = []
        self.buffers: dict[str, Tensor] = {}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Store the batch, and the buffers if the step may be skipped and they have to be restored."""
        self.batch = data_batch
        if len(self.skipped) < self.skips:
            self.buffers = {n: b.clone() for n, b in runner.model.named_buffers()}

    def install(self, wrapper: OptimWrapper) -> None:
        """Add the checks to an optimizer wrapper, or to each wrapper in a dict."""
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for single in wrappers:
            single.optimizer.register_step_pre_hook(self._before_step)
            single.update_params = self._checked(single.update_params)

    def _checked(self, update_params: Any) -> Any:
        def checked(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if any_rank(bad := not bool(torch.isfinite(loss.detach()).all())):
                self._met("loss", bad, [])
                # a loss with zero gradients, so that counters and the gradient exchange between processes proceed
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
        for parameter in parameters:  # optimizers do not update parameters without a gradient
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
        met = f"the {what} is NaN or infinite in iteration {iteration} ({where}); the optimizer step was not taken"
        if len(self.skipped) < self.skips:
            self.skipped.append(iteration)
            with torch.no_grad():  # the forward pass changed running statistics
                for name, buffer in self.runner.model.named_buffers():
                    buffer.copy_(self.buffers[name])
            self.runner.logger.warning(met)
            self.runner.progress.console.print(f"{met}; skipped, {len(self.skipped)} of at most {self.skips}")
            return
        before = f", after {self.skips} such iterations were skipped" if self.skips else ""
        raise TrainingError(
            f"{met}{before}. Check these images and their annotations, replay {stem.with_suffix('.pth')}, or lower the "
            "learning rate (optim_wrapper.optimizer.lr), then resume with `resume`"
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
        except CheckpointError as error:  # a full disk must not hide the reason for stopping
            self.runner.logger.warning("the dump was not written: %s", error)


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())
