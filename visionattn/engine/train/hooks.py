"""Training hooks: checkpoints that are consistent if the process is killed, and stopping with the state saved."""

import inspect
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import CheckpointHook as StockCheckpointHook
from mmengine.hooks import EMAHook, Hook

from visionattn.engine.compat.checkpoint import write_text
from visionattn.engine.config.options import close_matches
from visionattn.engine.registry import HOOKS
from visionattn.engine.train.loops import EpochLoop
from visionattn.errors import ConfigError

__all__ = ["EARLY_STOPPING", "CheckpointHook", "Interrupted", "SameBuffersHook", "StopHook", "any_rank", "stop_signals"]

EARLY_STOPPING = "early_stopping"
"""Entry of the message hub with the count of `visionattn.engine.train.finetune.early_stopping.EarlyStoppingHook`."""


def any_rank(flag: bool) -> bool:
    """Return True if the flag is True on any process. All processes must call this function."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def _no_rule(metric: Any) -> str:
    return f"`save_best`={metric!r} requires rule='greater' or rule='less' in CheckpointHook"


class Interrupted(KeyboardInterrupt):
    """Raised when SIGINT (Ctrl-C) or SIGTERM has stopped a run and its state was saved.

    Attributes:
        checkpoint: checkpoint to resume from, or None.
        iteration: number of completed iterations.
        signal: number of the signal.
    """

    def __init__(self, checkpoint: Path | None, iteration: int, number: int) -> None:
        super().__init__(f"stopped after iteration {iteration}")
        self.checkpoint, self.iteration, self.signal = checkpoint, iteration, number


@HOOKS.register_module()
class CheckpointHook(StockCheckpointHook):
    """The checkpoint hook of mmengine, which deletes an old checkpoint only after the new one is on the disk.

    It has the same arguments, and never deletes files outside of its own folder.

    Raises:
        ConfigError: an argument is unknown, or ``rule`` is required and missing.
    """

    def __init__(self, **arguments: Any) -> None:
        known = inspect.signature(StockCheckpointHook.__init__).parameters
        for name in arguments:  # mmengine ignores unknown arguments
            if name not in known:
                raise ConfigError(f"CheckpointHook takes no argument {name!r}{close_matches(name, known)}")
        try:
            super().__init__(**arguments)
        except ValueError as error:
            if "rule" not in str(error):
                raise
            raise ConfigError(_no_rule(arguments.get("save_best"))) from error

    def before_train(self, runner: Any) -> None:
        """Restore the list of kept checkpoints when resuming."""
        super().before_train(runner)
        folder = Path(self.out_dir)
        if self.save_best is not None:
            if len(self.key_indicators) == 1:
                self.best_ckpt_path = self._own(self.best_ckpt_path, folder)
            else:
                found = {key: self._own(path, folder) for key, path in self.best_ckpt_path_dict.items()}
                self.best_ckpt_path_dict = found

    @staticmethod
    def _own(path: str | None, folder: Path) -> str | None:
        """Return the file of this name in the folder of the run, which may have been moved or resumed elsewhere."""
        if not path:
            return None
        own = folder / Path(path).name
        return str(own) if own.is_file() else None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save every ``interval`` iterations, except at the end of an epoch, where `after_train_epoch` does."""
        if isinstance(runner.train_loop, EpochLoop) and batch_idx + 1 == len(runner.train_dataloader):
            return
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Any) -> None:
        """Save every ``interval`` epochs, or if the end of an epoch is due for an iteration-based checkpoint."""
        if not self.by_epoch and isinstance(runner.train_loop, EpochLoop):
            last = runner.epoch + 1 == runner.max_epochs
            if (self.interval > 0 and runner.iter % self.interval == 0) or (self.save_last and last):
                self._save_checkpoint_with_step(runner, runner.iter, {"epoch": runner.epoch + 1, "iter": runner.iter})
            return
        super().after_train_epoch(runner)

    def save_now(self, runner: Any, iteration: int) -> Path:
        """Save a checkpoint outside of the schedule.

        Args:
            runner: the runner.
            iteration: number of completed iterations.

        Returns:
            Path of the checkpoint.
        """
        epoch = runner.epoch
        if isinstance(runner.train_loop, EpochLoop):
            epoch = iteration // len(runner.train_dataloader)
        path = Path(self.out_dir) / f"iter_{iteration}.pth"
        runner.message_hub.update_info("last_ckpt", str(path))
        self._save(runner, path.name, {"epoch": epoch, "iter": iteration}, everything=True)
        return path

    def has_saved(self, runner: Any) -> bool:
        """Return True if the last checkpoint is that of the current iteration, between two iterations."""
        name = Path(runner.message_hub.runtime_info.get("last_ckpt") or "").name
        return name in (self.filename_tmpl.format(self._step(runner)), f"iter_{runner.iter}.pth")

    def criterion(self, metrics: dict[str, float]) -> tuple[str, str]:
        """Return the first metric of ``save_best``, and whether it should be ``"greater"`` or ``"less"``.

        Args:
            metrics: results of a validation; ``save_best="auto"`` is the first one.

        Raises:
            ConfigError: the direction is unknown.
        """
        if "auto" in self.key_indicators:
            key = next(iter(metrics))
            try:
                self._init_rule(self.rules, [key])
            except ValueError as error:
                raise ConfigError(_no_rule(key)) from error
        return self.key_indicators[0], self.rules[0]

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        """Save the best checkpoint, and save that of this iteration again if the state of the run has changed."""
        before = dict(runner.message_hub.runtime_info)
        super().after_val_epoch(runner, metrics)
        after, step = runner.message_hub.runtime_info, self._step(runner)
        changed = any(before.get(k) != v for k, v in after.items() if k.startswith("best_score"))
        counted = (after.get(EARLY_STOPPING) or {}).get("seen") == runner.iter
        if (changed or counted) and Path(self.last_ckpt or "").name == self.filename_tmpl.format(step):
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": runner.iter})

    def _step(self, runner: Any) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def _save(self, runner: Any, name: str, meta: dict, everything: bool) -> None:
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=everything and self.save_optimizer,
            save_param_scheduler=everything and self.save_param_scheduler,
            meta=meta,
        )
        if everything and is_main_process():
            write_text(Path(runner.work_dir) / "last_checkpoint", str(Path(self.out_dir) / name))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        dropped: list[int] = []
        if self.max_keep_ckpts > 0:
            steps = [s for s in self.keep_ckpt_ids if s != step] + [step]
            dropped, kept = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self._save(runner, name, meta, everything=True)
        if is_main_process():
            for old in dropped:
                (Path(self.out_dir) / self.filename_tmpl.format(old)).unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        if not self.save_best:
            return
        step = self._step(runner)
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        self.criterion(metrics)
        single = len(self.key_indicators) == 1
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            if key not in metrics:
                raise ConfigError(f"`save_best` must be one of the metrics {', '.join(metrics)}, got {key!r}")
            score_name = "best_score" if single else f"best_score_{key}"
            path_name = "best_ckpt" if single else f"best_ckpt_{key}"
            best = runner.message_hub.runtime_info.get(score_name, self.init_value_map[rule])
            score = metrics[key]
            if score is None or not self.is_better_than[key](score, best):
                continue
            previous = self.best_ckpt_path if single else self.best_ckpt_path_dict[key]
            name = f"best_{key}_{self.filename_tmpl.format(step)}".replace("/", "_")
            path = str(Path(self.out_dir) / name)
            runner.message_hub.update_info(score_name, score)
            runner.message_hub.update_info(path_name, path)
            self._save(runner, name, meta, everything=False)
            if single:
                self.best_ckpt_path = path
            else:
                self.best_ckpt_path_dict[key] = path
            if previous and previous != path and is_main_process():
                Path(previous).unlink(missing_ok=True)
            runner.logger.info(f"best so far: {key} {score:.4f}, saved as {name}")


class SameBuffersHook(Hook):
    """Validate with the buffers of the first process, which are those in checkpoints.

    Without SyncBN, the running statistics of batch norm differ between processes.
    """

    priority = "LOWEST"  # after the hook of averaged weights, which exchanges the buffers

    def before_val_epoch(self, runner: Any) -> None:
        """Copy the buffers."""
        for buffer in runner.model.buffers():
            broadcast(buffer)


@HOOKS.register_module()
class StopHook(Hook):
    """Stop training between two iterations and save the state, when requested by `stop_signals`."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.requested = 0  # number of the signal

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop after an iteration, except at the end of an epoch, where `after_train_epoch` does."""
        if isinstance(runner.train_loop, EpochLoop) and batch_idx + 1 == len(runner.train_dataloader):
            return
        self._stop_if_requested(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Any) -> None:
        """Stop after an epoch."""
        if isinstance(runner.train_loop, EpochLoop):
            self._stop_if_requested(runner, runner.iter)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop during validation, which is repeated when resuming."""
        if isinstance(runner._train_loop, dict) or runner._train_loop is None:
            return
        self._stop_if_requested(runner, runner.iter, validating=True)

    def _stop_if_requested(self, runner: Any, iteration: int, validating: bool = False) -> None:
        if not any_rank(bool(self.requested)):
            return
        for ema in (h for h in runner.hooks if validating and isinstance(h, EMAHook)):
            ema._swap_ema_parameters()  # during validation, the model has the averaged weights
        hook = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
        path = hook.save_now(runner, iteration) if hook is not None and iteration > 0 else None
        raise Interrupted(path, iteration, self.requested or signal.SIGINT)


@contextmanager
def stop_signals(hook: StopHook) -> Iterator[None]:
    """Make the first SIGINT or SIGTERM request a stop from the hook, and the second one stop immediately.

    Signals within a second count as one: ``timeout`` and the launcher of several processes send SIGTERM to a process
    and to its group.
    """

    owner = os.getpid()
    first = 0.0

    def ask(number: int, frame: Any) -> None:
        nonlocal first
        if os.getpid() != owner:  # a forked process: only its parent handles SIGINT, and SIGTERM comes from the parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if not hook.requested:
            hook.requested, first = number, time.monotonic()
        elif time.monotonic() - first > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
