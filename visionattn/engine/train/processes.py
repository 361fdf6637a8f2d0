"""Connect the processes of a run, which may be on several machines, exchange objects, and start data workers."""

import atexit
import os
import signal
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import mmengine.evaluator.metric as mm_metric
import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, broadcast_object_list
from torch.utils.data import DataLoader

from visionattn.engine.compat.checkpoint import candidates
from visionattn.errors import CheckpointError, ConfigError, TrainingError

__all__ = [
    "TIMEOUT",
    "IgnoreSignals",
    "SignalSafeDataLoader",
    "check_shared",
    "connect",
    "from_first",
    "lost_connection",
]

TIMEOUT = 1800
"""Seconds that a process waits for the others by default. The first process checks the data and computes metrics while
the others wait."""

_PREFIX = "env_cfg.dist_cfg"
_NONE = object()
_groups: dict[str, dist.ProcessGroup] = {}


def connect(config: Mapping[str, Any]) -> None:
    """Connect this process to the others, unless it is connected already.

    The environment variables are those of torchrun. Metrics are collected over the network from now on, and not in a
    folder of the current one as mmengine does, which several machines need not share.

    Args:
        config: ``env_cfg.dist_cfg`` may have ``timeout`` in seconds, `TIMEOUT` by default, and ``backend``, which is
            NCCL by default for GPUs, and always gloo for CPUs.

    Raises:
        ConfigError: the timeout is invalid, or there are fewer GPUs than processes on this machine.
    """
    mm_metric.collect_results = _collect
    if dist.is_initialized():
        return
    options = (config.get("env_cfg") or {}).get("dist_cfg") or {}
    timeout = options.get("timeout", TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
        raise ConfigError(f"{_PREFIX}.timeout must be a positive number of seconds, got {timeout!r}")
    backend = "gloo"
    if torch.cuda.is_available():
        backend, place = options.get("backend", "nccl"), int(os.environ["LOCAL_RANK"])
        if place >= torch.cuda.device_count():
            raise ConfigError(
                f"{socket.gethostname()} has {torch.cuda.device_count()} GPUs; start at most one process for each"
            )
        torch.cuda.set_device(place)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    if backend != "gloo":  # results of a test may not fit into the memory of a GPU
        _groups["results"] = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))


@contextmanager
def lost_connection() -> Iterator[None]:
    """Raise `TrainingError` if another process has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        late = any(word in text.lower() for word in ("timed out", "timeout"))
        what = f"did not answer in time ({_PREFIX}.timeout)" if late else "has ended"
        raise TrainingError(f"another process {what}; see its output, then resume with `resume`") from error


def from_first(value: Any) -> Any:
    """Return the value of the first process. All processes must call this function; a single one may."""
    box = [value]
    broadcast_object_list(box)
    return box[0]


def check_shared(path: Path | None, folder: Path) -> None:
    """Check that each process has the checkpoint that the first one resumes from. All processes must call this.

    Args:
        path: the checkpoint, or None if the first process has found none in the work dir.
        folder: the work dir.

    Raises:
        CheckpointError: the checkpoint is missing on a machine, or only another machine has checkpoints. It is raised
            on all processes.
    """
    wrong = bool(candidates(folder)) if path is None else not path.is_file()
    hosts = ", ".join(sorted({host for host in all_gather_object(socket.gethostname() if wrong else None) if host}))
    if not hosts:
        return
    if path is None:
        found = f"{folder}: has checkpoints on {hosts}, but none on the machine of the first process"
    else:
        found = f"{path}: the first process resumes from it, but it is missing on {hosts}"
    raise CheckpointError(f"{found}; the work dir must be a folder that all machines share")


def _collect(results: list, size: int, device: str = "cpu", tmpdir: str | None = None) -> list | None:
    """Collect results in the first process, in the order of the data.

    Args:
        results: results of this process, one per image; process ``r`` of ``n`` has images ``r``, ``r + n``, ...
        size: number of images; further results are repeated images.
        device, tmpdir: not used.

    Returns:
        The results, or None in the other processes.
    """
    count, first = (dist.get_world_size(), dist.get_rank() == 0) if dist.is_initialized() else (1, True)
    if count == 1:
        return results[:size]
    parts: list[Any] | None = [None] * count if first else None
    dist.gather_object(results, parts, group=_groups.get("results"))
    if parts is None:
        return None
    return [found for row in zip_longest(*parts, fillvalue=_NONE) for found in row if found is not _NONE][:size]


_STOP = (signal.SIGINT, signal.SIGTERM)
_iterators: weakref.WeakSet[Any] = weakref.WeakSet()


class IgnoreSignals:
    """A ``worker_init_fn`` after which a data worker ignores SIGINT and SIGTERM.

    Schedulers send SIGTERM to all processes of a job. The main process needs its data workers to complete the
    iteration, and a worker stops when its main process has stopped.

    Args:
        function: the ``worker_init_fn`` of the dataloader, which is called afterwards.
    """

    def __init__(self, function: Callable[[int], None] | None) -> None:
        self.function = function.function if isinstance(function, IgnoreSignals) else function

    def __call__(self, worker: int) -> None:
        """Initialize a worker."""
        for number in _STOP:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
        if self.function is not None:
            self.function(worker)


class SignalSafeDataLoader(DataLoader):
    """A dataloader whose workers are not stopped by SIGINT and SIGTERM, see `IgnoreSignals`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "worker_init_fn": IgnoreSignals(kwargs.get("worker_init_fn"))})

    def _get_iterator(self) -> Any:
        if self.num_workers == 0 or not hasattr(signal, "pthread_sigmask"):  # Windows
            return super()._get_iterator()
        resource_tracker.ensure_running()  # spawning starts it if it is missing, which unblocks the signals
        # Workers inherit the blocked signals, so that none is delivered before `IgnoreSignals` is called.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        try:
            iterator = super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for worker in iterator._workers:  # SIGTERM, for workers that do not stop in time, has no effect
            worker._popen.terminate = worker._popen.kill
        _iterators.add(iterator)
        return iterator


@atexit.register
def _shut_down() -> None:
    """Stop persistent workers before `multiprocessing` terminates them, which PyTorch would report as an error."""
    for iterator in list(_iterators):
        iterator._shutdown_workers()
