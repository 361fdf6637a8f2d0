"""Train or test in one or several processes, with NCCL on GPUs and gloo on CPUs."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from visionattn import errors
from visionattn.engine.config.load import load_config
from visionattn.engine.train.hooks import Interrupted
from visionattn.engine.train.processes import lost_connection
from visionattn.engine.train.train import train
from visionattn.errors import ConfigError, TrainingError

__all__ = ["launch"]


def launch(options: dict[str, Any], devices: int = 1, task: Callable[..., Any] = train) -> Any:
    """Load a config and train or test the model.

    Args:
        options: ``config`` and ``cfg_options``, see `visionattn.engine.config.load.load_config`, and the other
            arguments of `task`.
        devices: number of processes to start. Under torchrun, which sets ``WORLD_SIZE``, they are already started.
        task: `visionattn.engine.train.train.train`, `visionattn.engine.train.testing.test` or another function of a
            module, which takes the config and the argument ``distributed``.

    Returns:
        The result of the first process, or None under torchrun for ranks above 0.

    Raises:
        ConfigError: ``devices`` is invalid; see also `load_config` and `task` for all errors.
        TrainingError: another process has ended.
    """
    if devices < 1:
        raise ConfigError(f"`devices` must be at least 1, got {devices}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        result = _run(task, options, distributed=True)
        return result if int(os.environ.get("RANK", "0")) == 0 else None
    if devices == 1:
        return _run(task, options, distributed=False)
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise ConfigError(f"`devices` must be at most {torch.cuda.device_count()}, the number of GPUs, got {devices}")
    load_config(options["config"], options.get("cfg_options"))  # report errors once, before starting processes
    return _several(task, options, devices)


def _run(task: Callable[..., Any], options: dict[str, Any], distributed: bool) -> Any:
    options = dict(options)
    config = load_config(options.pop("config"), options.pop("cfg_options", None))
    with lost_connection() if distributed else nullcontext():
        return task(config, distributed=distributed, **options)


def _several(task: Callable[..., Any], options: dict[str, Any], count: int) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(rank, count, port, task, options, results), daemon=False)
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    outcome: tuple[str, Any] | None = None

    def pass_on(number: int, frame: Any) -> None:
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, number)

    # The terminal sends SIGINT to all processes, but SIGTERM is only sent to this one.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if main else None
    try:
        while any(w.is_alive() for w in workers) or not results.empty():
            if not results.empty():
                kind, value = results.get()
                if outcome is None or kind != "done":
                    outcome = (kind, value) if outcome is None or outcome[0] == "done" else outcome
                if kind == "error":
                    break
            for worker in workers:
                worker.join(0.1)
            if any(w.exitcode not in (None, 0) for w in workers) and results.empty():
                break
    except KeyboardInterrupt:  # the processes received the same signal and save their state
        for worker in workers:
            worker.join()
        while not results.empty():
            kind, value = results.get()
            outcome = (kind, value) if kind == "stopped" else outcome
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.join(5)
            if worker.is_alive():
                worker.terminate()
                worker.join()
    return _outcome(outcome, workers)


def _outcome(outcome: tuple[str, Any] | None, workers: list[Any]) -> Any:
    kind, value = outcome or ("", None)
    if kind == "done":
        return value
    if kind == "stopped":
        raise Interrupted(*value)
    if kind == "error":
        raise value
    codes = [w.exitcode for w in workers]
    raise TrainingError(
        f"a process exited without an error message (exit codes {codes}); use `devices` 1 to see the error"
    )


def _follow_parent() -> None:
    """Stop this process and save its state when its parent process has exited, for example because it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _worker(rank: int, count: int, port: int, task: Callable[..., Any], options: dict[str, Any], results: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    threading.Thread(target=_follow_parent, daemon=True).start()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        result = _run(task, options, distributed=True)
        if rank == 0:
            results.put(("done", result))
    except Interrupted as stop:
        if rank == 0:
            results.put(("stopped", (Path(stop.checkpoint) if stop.checkpoint else None, stop.iteration, stop.signal)))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        known = error
        if not isinstance(error, errors.VisionattnError):
            text = errors.summary(error)
            known = TrainingError(f"unexpected {type(error).__name__} on process {rank}: {text}")
        results.put(("error", known))
        raise SystemExit(1) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
