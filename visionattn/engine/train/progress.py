"""Console output of a run: a progress bar and one line per validation. Everything else is written to the log."""

import contextlib
import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import Progress

from visionattn.engine.registry import HOOKS
from visionattn.engine.train.curve import METRICS_FILE, read_records, short_names
from visionattn.io.console import progress_bar

__all__ = ["ProgressHook", "RecordHook", "format_metrics", "screen", "to_log"]


def screen() -> Console:
    """Return a console on the standard output; silent on ranks above 0."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not is_main_process())


class _LogStream(io.TextIOBase):
    """A text stream that writes to a logger, for the output of pycocotools and others."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger, self.rest = logger, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.strip():
                self.logger.info(line.rstrip())
        return len(text)

    def flush(self) -> None:
        pass


@contextlib.contextmanager
def to_log(logger: logging.Logger) -> Iterator[None]:
    """Redirect the standard output and Python warnings to the log of a run."""

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any, **__: Any) -> None:
        logger.info(f"{filename}:{lineno}: {category.__name__}: {message}")

    with contextlib.redirect_stdout(_LogStream(logger)), warnings.catch_warnings():  # type: ignore[type-var]
        warnings.showwarning = show
        yield


def format_metrics(metrics: dict[str, float], limit: int = 8) -> str:
    """Format the first metrics as ``AP 0.431  AP50 0.702``; negative (undefined) ones are left out."""
    shown = [(n, v) for n, v in metrics.items() if v >= 0][:limit] or list(metrics.items())[:limit]
    return "  ".join(f"{name} {value:.3f}" if abs(value) <= 1 else f"{name} {value:.1f}" for name, value in shown)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show progress and write ``metrics.jsonl``.

    On a terminal, progress is a bar; otherwise it is one line every ``interval`` iterations.

    Args:
        interval: number of iterations between records and between lines.
        console: output console; None for the current standard output.
    """

    priority = "LOWEST"  # after the checkpoint hook: validations are recorded once their checkpoint is saved

    def __init__(self, interval: int = 50, console: Console | None = None) -> None:
        self.interval = interval
        self.console = console or screen()
        self.last_metrics: dict[str, float] = {}
        self._bar: Progress | None = None
        self._task: Any = None
        self._val_task: Any = None
        self._started = 0.0
        self._first = 0
        self._latest: dict[str, Any] = {}

    # training

    def write_record(self, runner: Any) -> None:
        """Append the record of the current iteration if one is due. Called by `RecordHook`."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters:
            self._latest = self._record(runner, done)
            self._append(runner, self._latest)

    def before_train(self, runner: Any) -> None:
        """Show the bar, starting at the current iteration."""
        self._started, self._first = time.monotonic(), runner.iter
        if self.console.is_terminal and not self.console.quiet:
            self._bar = progress_bar(
                "it",
                self.console,
                "{task.fields[text]}",
                redirect_stdout=False,  # the standard output goes to the log
                redirect_stderr=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=runner.max_iters, completed=runner.iter, text="")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the bar, or print a line every ``interval`` iterations."""
        done = runner.iter + 1
        if self._bar is not None:
            loss = float(outputs["loss"]) if outputs and "loss" in outputs else float("nan")
            self._bar.update(self._task, completed=done, text=f"loss {loss:.3f}  lr {self._rate(runner):.1e}")
        record = self._latest
        if record.get("iter") != done:
            return
        if self._bar is None:
            each = (time.monotonic() - self._started) / max(done - self._first, 1)
            left = (runner.max_iters - done) * each
            rate = f"{1 / each:.1f} it/s" if each < 1 else f"{each:.1f} s/it"
            losses = "  ".join(f"{k} {v:.3f}" for k, v in record.items() if "loss" in k)
            self.console.print(
                f"iter {done}/{runner.max_iters}  {losses}  lr {record['lr']:.1e}  {rate}  "
                f"ETA {timedelta(seconds=round(left))}"
            )

    def after_train(self, runner: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar; also called when a run ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    # validation

    def before_val_epoch(self, runner: Any) -> None:
        """Show a second bar while validating."""
        if self._bar is not None:
            self._val_task = self._bar.add_task("  val", total=len(runner.val_dataloader), text="")

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the second bar."""
        if self._bar is not None and self._val_task is not None:
            self._bar.update(self._val_task, completed=batch_idx + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Print one line with the metrics and write a record."""
        if self._bar is not None and self._val_task is not None:
            self._bar.remove_task(self._val_task)
            self._val_task = None
        self.last_metrics = short_names(metrics or {})
        done = runner.iter
        text = format_metrics(self.last_metrics) or "no detections yet"  # mmdet returns no metrics in this case
        self.console.print(f"validation at iteration {done}: {text}")
        self._append(runner, {"iter": done, "val": self.last_metrics})

    def write_stop(self, runner: Any, reason: str, best: int) -> None:
        """Append a record that the run has stopped early, with the iteration of its best model.

        All processes must call it: the losses since the last record are recorded as well.
        """
        if runner.iter > self._first and runner.iter % self.interval and runner.iter != runner.max_iters:
            self._append(runner, self._record(runner, runner.iter))
        record = {"iter": runner.iter, "stopped": reason, "best_iter": best}
        if is_main_process() and read_records(runner.work_dir)[-1:] != [record]:
            self._append(runner, record)

    # tests

    def before_test_epoch(self, runner: Any) -> None:
        """Show a bar while testing."""
        if self.console.is_terminal and not self.console.quiet:
            self._bar = progress_bar(
                "batch", self.console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._bar.start()
            self._task = self._bar.add_task("test", total=len(runner.test_dataloader))

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=batch_idx + 1)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar."""
        self.close()

    def _rate(self, runner: Any) -> float:
        return float(next(iter(runner.optim_wrapper.get_lr().values()))[0])

    def _record(self, runner: Any, done: int) -> dict[str, Any]:
        """Average all training scalars over the iterations since the last record and over the processes."""
        scalars = runner.message_hub.log_scalars
        window = (done - 1) % self.interval + 1
        rate = scalars.get("train/base_lr", scalars["train/lr"])  # not that of the first parameter group
        record: dict[str, Any] = {"iter": done, "lr": float(rate.current())}
        names = sorted((n for n in scalars if n.startswith("train/")), key=lambda n: (n != "train/loss", n))
        for name in names:
            short = name.removeprefix("train/")
            if short not in ("lr", "base_lr", "time", "data_time"):
                record[short] = float(scalars[name].mean(window))
        if runner.world_size > 1:
            everyone: list[Any] = [None] * runner.world_size
            torch.distributed.all_gather_object(everyone, record)
            for short in record:
                values = [r[short] for r in everyone if short in r]
                record[short] = record[short] if short == "iter" else sum(values) / len(values)
        record["seconds"] = round(float(scalars["train/time"].mean(window)), 4) if "train/time" in scalars else None
        return record

    def _append(self, runner: Any, record: dict[str, Any]) -> None:
        if is_main_process():
            with open(Path(runner.work_dir) / METRICS_FILE, "a") as stream:
                stream.write(json.dumps(record) + "\n")


class RecordHook(Hook):
    """Write the records of `ProgressHook` before the checkpoint of the same iteration is saved.

    No record is missing if the run is killed between the two, and records after the checkpoint are deleted when
    resuming.

    Args:
        progress: the progress hook.
    """

    priority = "LOW"  # before the checkpoint hook, which has VERY_LOW

    def __init__(self, progress: ProgressHook) -> None:
        self.progress = progress

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write the record of the current iteration if one is due."""
        self.progress.write_record(runner)
