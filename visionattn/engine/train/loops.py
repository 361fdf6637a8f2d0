"""Training loops of mmengine that can resume within an epoch; see `visionattn.engine.train.randomness`."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch import nn
from torch.utils.data import DataLoader

from visionattn.engine.train.randomness import reading, resumable_loader, seed_iteration, shut_down

__all__ = ["EpochLoop", "IterLoop"]


def _loader(runner: Any, dataloader: DataLoader | dict, endless: bool) -> DataLoader:
    if isinstance(dataloader, dict):
        different = runner._randomness_cfg.get("diff_rank_seed", False)
        dataloader = runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=different)
    return resumable_loader(dataloader, runner.seed, endless, runner.bad_samples)


def _report_bad_samples(runner: Any) -> None:
    line = runner.bad_samples.summary() if runner.bad_samples is not None else None
    if line:
        runner.note(line)


def _missed_validation(loop: Any, due: bool) -> None:
    """Validate when resuming if the run was killed after saving a checkpoint but before its validation finished."""
    runner = loop.runner
    if due and runner.val_loop is not None and loop.iter > 0 and loop.iter not in runner.validated:
        runner.val_loop.run()


class EpochLoop(EpochBasedTrainLoop):
    """Epoch-based training loop that can resume at any iteration."""

    def __init__(self, runner: Any, dataloader: DataLoader | dict, **kwargs: Any) -> None:
        super().__init__(runner, _loader(runner, dataloader, endless=False), **kwargs)

    def run(self) -> nn.Module:
        """Train until the last epoch."""
        length = len(self.dataloader)
        self._epoch = min(self._iter // length, self._max_epochs)
        done = self._epoch
        due = self._iter == done * length and done >= self.val_begin and (
            done % self.val_interval == 0 or done == self._max_epochs
        )  # fmt: skip
        _missed_validation(self, due)
        model = super().run()
        shut_down(getattr(self.dataloader, "_iterator", None))
        return model

    def run_epoch(self) -> None:
        """Train on the remaining batches of the current epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        length = len(self.dataloader)
        self.dataloader.batch_sampler.start(self._epoch, self._iter)
        with reading(self.dataloader) as batches:
            for index, batch in enumerate(batches, start=self._iter - self._epoch * length):
                if self.runner.bad_samples is not None:
                    batch = self.runner.bad_samples.take(batch, self._iter + 1)
                seed_iteration(self.runner.seed, self._iter)
                self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        _report_bad_samples(self.runner)


class IterLoop(IterBasedTrainLoop):
    """Iteration-based training loop that can resume at any iteration."""

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        # The constructor of mmengine starts reading data immediately, before the position to resume at is known.
        BaseLoop.__init__(self, runner, _loader(runner, dataloader, endless=True))
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._epoch = self._iter = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)
        runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)

    def run(self) -> nn.Module:
        """Train until the last iteration."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        _missed_validation(self, self._validation_due())
        if self._iter < self._max_iters:
            self.dataloader.batch_sampler.start(0, self._iter)
            with reading(self.dataloader) as batches:
                self._train_on(batches)
            shut_down(batches)
            _report_bad_samples(runner)
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _train_on(self, batches: Iterator[Any]) -> None:
        runner = self.runner
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            batch = next(batches)
            if runner.bad_samples is not None:
                batch = runner.bad_samples.take(batch, self._iter + 1)
            seed_iteration(runner.seed, self._iter)
            self.run_iter(batch)
            self._decide_current_val_interval()
            if runner.val_loop is not None and self._validation_due():
                runner.val_loop.run()

    def _validation_due(self) -> bool:
        return self._iter >= self.val_begin and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
