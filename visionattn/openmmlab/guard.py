"""Stops a run before a loss or gradient that is not finite reaches the weights."""

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from visionattn.errors import TrainingError
from visionattn.openmmlab.hooks import any_rank

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
    is write ``nonfinite_iter_N_rank_R.json`` into the work dir with the batch's image names. Under mixed
    precision with loss scaling, gradients that overflow are the scaler's to skip, and it does so before this.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.batch: Any = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch, to be able to name its images."""
        self.batch = data_batch

    def install(self, wrapper: OptimWrapper) -> None:
        """Watch an optimizer wrapper, or each one of a dict of them."""
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for single in wrappers:
            single.optimizer.register_step_pre_hook(self._before_step)
            single.update_params = self._checked(single.update_params)

    def _checked(self, update_params: Any) -> Any:
        def checked(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if any_rank(bad := not bool(torch.isfinite(loss.detach()).all())):
                self._stop("loss", bad, [])
            update_params(loss, *args, **kwargs)

        return checked

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf")) if gradients else torch.zeros(())
        if any_rank(bad := not bool(torch.isfinite(largest))):
            names = [n for n, p in self.runner.model.named_parameters() if not _finite(p.grad)]
            self._stop("gradient", bad, names)

    def _stop(self, what: str, here: bool, parameters: list[str]) -> None:
        iteration = self.runner.iter + 1
        file = Path(self.runner.work_dir) / f"nonfinite_iter_{iteration}_rank_{get_rank()}.json"
        names = image_names(self.batch)
        if here:
            record = {
                "iteration": iteration,
                "what": what,
                "images": names,
                "parameters": parameters[:20],
                "lr": {k: v[0] for k, v in self.runner.optim_wrapper.get_lr().items()},
            }
            file.write_text(json.dumps(record, indent=1))
        shown = ", ".join(Path(n).name for n in names[:4]) + (", ..." if len(names) > 4 else "")
        where = f"images {shown}, see {file}" if here else "on another process, see nonfinite_*.json in the work dir"
        raise TrainingError(
            f"the {what} is not finite at iteration {iteration} ({where}); no step was taken with it. Look at these "
            "images and their annotations, or lower the learning rate (optim_wrapper.optimizer.lr), then --resume"
        )


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())
