"""Train the model of a config."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import MODELS, DefaultScope

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.engine.compat.checkpoint import write_text
from visionattn.engine.config.build import building, keep_arguments, quiet
from visionattn.engine.config.checks import check_config
from visionattn.engine.config.class_names import checkpoint_classes, follow_checkpoint
from visionattn.engine.config.data_checks import check_data
from visionattn.engine.config.schedules import fitted_line
from visionattn.engine.train import train_options
from visionattn.engine.train.curve import METRICS_FILE, cut_records, draw_curve, read_records
from visionattn.engine.train.experiments.options import drop_backends, use_mlflow, use_wandb
from visionattn.engine.train.finetune import sources
from visionattn.engine.train.finetune.early_stopping import EarlyStoppingHook
from visionattn.engine.train.finetune.start import Started
from visionattn.engine.train.finetune.start import start_from as select_weights
from visionattn.engine.train.hooks import stop_signals
from visionattn.engine.train.processes import check_shared, connect, from_first
from visionattn.engine.train.progress import screen, to_log
from visionattn.engine.train.runner import Runner
from visionattn.errors import CheckpointError, ConfigError, DataError, TrainingError

__all__ = ["TrainResult", "plain_errors", "train"]


@dataclass
class TrainResult:
    """Result of `train`.

    Attributes:
        work_dir: folder of the run.
        config: the resolved config in the folder.
        checkpoint: the last checkpoint.
        best: the checkpoint with the best validation metric, if the config saves it.
        curve: image of the learning curve.
        log: the log file.
        iterations: number of completed iterations.
        seconds: wall time, without the part before resuming.
        metrics: metrics of the last validation under short names (``AP``, ``AP50``).
        best_metrics: metrics of the validation with the best first metric.
        stopped: why the run ended before its last iteration, or None.
    """

    work_dir: Path
    config: Path
    checkpoint: Path | None
    best: Path | None
    curve: Path | None
    log: Path
    iterations: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None


def train(
    config: Config,
    *,
    work_dir: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    amp: bool = False,
    seed: int | None = None,
    ema: bool | float = False,
    accumulate: int | None = None,
    wandb: bool | str = False,
    mlflow: bool | str = False,
    skip_nonfinite: int = 0,
    max_bad_samples: int = 0,
    deterministic: bool = False,
    partial: bool = False,
    start_from: str | os.PathLike | None = None,
    freeze: int | str | None = None,
    patience: int | None = None,
    layer_decay: float | None = None,
    shard_optimizer: bool = False,
    distributed: bool = False,
) -> TrainResult:
    """Train the model of a config.

    `visionattn.engine.compat.install` is called first.

    Args:
        config: as returned by `visionattn.engine.config.load.load_config`.
        work_dir: folder for checkpoints and logs; by default ``work_dirs/<config name>``.
        resume: True resumes from the newest readable checkpoint in the work dir, or starts a new run if there is none;
            a path resumes from that checkpoint. By default, ``resume`` and ``load_from`` of the config decide. If
            learning rates or schedules of the config have changed since, they are followed, and the changes printed.
        amp: mixed precision: float16 with loss scaling on CUDA, bfloat16 on CPUs.
        seed: seed of all random numbers; by default ``randomness.seed`` of the config, or 0. A resumed run keeps its
            seed.
        ema: keep an exponential moving average of the weights with this momentum (True: that of the config, or
            0.0002). It is used for validation and as the weights in checkpoints.
        accumulate: number of iterations per optimizer step. Schedules remain in units of iterations.
        wandb: also log to this project of Weights & Biases (True: WANDB_PROJECT).
        mlflow: also log to this experiment of MLflow (True: MLFLOW_EXPERIMENT_NAME, or ``visionattn``).
        skip_nonfinite: number of iterations with a NaN or infinite loss or gradient that are skipped; a further one
            stops the run.
        max_bad_samples: number of different unreadable training samples that are skipped; a further one stops the run.
        deterministic: only use deterministic algorithms, on GPUs as well.
        partial: load the tensors of ``load_from`` that match the model, and keep the initial values of the others. By
            default, only class layers of another number of classes may differ.
        start_from: weights to start from: the folder of a run (its best checkpoint), the name of a model of this
            package, a file, or the name of a pretrained timm model; see `visionattn.engine.train.finetune.sources`. By
            default, ``start_from`` and ``load_from`` of the config decide. A resumed run does not load it again.
        freeze: freeze the stem and this number of stages of the backbone, or ``"all"``.
        patience: stop after this number of validations without an improvement of the metric of ``save_best``.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below it.
        shard_optimizer: divide the state of the optimizer among the processes, which changes no result.
        distributed: this is one of several processes, and the environment variables of torchrun are set.

    Returns:
        The files, the metrics and the wall time.

    Raises:
        ConfigError, DataError, CheckpointError: the config, the data or a checkpoint is invalid.
        TrainingError: the loss or a gradient is NaN or infinite, or memory is exhausted.
        Interrupted: stopped by SIGINT (Ctrl-C) or SIGTERM; the state was saved.
    """
    install()
    if distributed:
        connect(config)
    console = screen()
    name = Path(config.filename).name if config.filename else "config"
    _check_trainable(config, name)
    if is_main_process():
        check_config(config, name=name)
    folder = Path(work_dir or config.get("work_dir") or Path("work_dirs") / Path(name).stem)
    config.work_dir = str(folder)
    if resume is False and config.get("resume"):  # as in mmengine
        resume = config.get("load_from") or True
    source = from_first(_resume_source(folder, resume, console) if is_main_process() else None)
    if resume is True:
        source = folder / source.name if source is not None else None
        check_shared(source, folder)
    config.resume = source is not None
    origin = _origin(config, start_from, source, name, console)
    if source is not None:
        config.load_from = str(source)
    if source is not None or (config.get("load_from") and "://" not in str(config.load_from)):
        start = checkpoints.read(config.load_from)  # also finds errors before the data is checked
        classes = checkpoint_classes(start)
        if other := follow_checkpoint(config, classes, ("train", "val"), str(config.load_from), source is not None):
            console.print(f"{config.load_from}: trained on other classes than {', '.join(other[:8])}")
    config.randomness = {**(config.get("randomness") or {}), "seed": _seed(config, seed, source)}
    if amp:
        train_options.use_amp(config, name)
    if ema is not False:
        train_options.use_ema(config, None if ema is True else ema)
    if accumulate is not None:
        train_options.accumulate(config, accumulate, name)
    if freeze is not None:
        train_options.freeze(config, freeze, name)
    if layer_decay is not None:
        train_options.use_layer_decay(config, layer_decay, name)
    if patience is not None:
        train_options.stop_early(config, patience, name)
    train_options.shard_optimizer(config, shard_optimizer, distributed, name)
    train_options.tolerate(config, skip_nonfinite, max_bad_samples)
    if partial:
        config.partial = True
    if deterministic:
        train_options.be_deterministic(config)
    drop_backends(config)
    if wandb is not False and is_main_process():
        use_wandb(config, None if wandb is True else wandb, folder, source is not None)
    if mlflow is not False and is_main_process():
        use_mlflow(config, None if mlflow is True else mlflow, folder, source is not None)
    config.launcher = "pytorch" if distributed else "none"
    if distributed and not torch.cuda.is_available():
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False,
            "find_unused_parameters": config.get("find_unused_parameters", False),
        }  # fmt: skip
    started = None if origin is None else _start(config, origin, name)  # before anything is written
    known_bad: dict[str, str] = {}
    tolerant = bool(config.get("max_bad_samples"))
    data = []
    if tolerant or is_main_process():  # each process must know which files to skip
        data = check_data(config, bad=known_bad if tolerant else None)
    if len(known_bad) > (config.get("max_bad_samples") or 0):
        raise DataError(
            f"{next(iter(known_bad.values()))} (and {len(known_bad) - 1} more); `max_bad_samples` is "
            f"{config.max_bad_samples}"
        )

    earlier = _config_of_run(folder)
    with quiet(), building(name):
        runner = Runner.from_cfg(config)  # writes the config
    runner.started = started
    if runner.bad_samples is not None:
        runner.bad_samples.known = known_bad
    if source is not None:
        own = source.parent.resolve() == folder.resolve()
        runner.validated = from_first(frozenset(r["iter"] for r in read_records(folder) if own and "val" in r))
    if is_main_process():
        _prepare_folder(folder, source, runner, earlier)
    parameters = sum(p.numel() for p in runner.bare_model.parameters())
    console.print(f"{name}: {runner.model_name}, {parameters / 1e6:.2f} M parameters, on {_device(runner)}")
    for line in [*(started.lines if started is not None else []), *data]:
        console.print(line, markup=False)
    if line := fitted_line(config):
        console.print(line)
    console.print(f"work dir {folder}")
    begin = time.monotonic()
    try:
        with to_log(runner.logger), stop_signals(runner.stopper), building(name), plain_errors(name):
            runner.train()
    finally:
        runner.progress.close()
        if is_main_process() and read_records(folder):
            draw_curve(folder, Path(name).stem)
    return _result(runner, folder, name, time.monotonic() - begin)


def _check_trainable(config: Config, name: str) -> None:
    for key in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if not config.get(key):
            raise ConfigError(f"{name}: has no key {key!r}, which training requires")


def _origin(
    config: Config, given: str | os.PathLike | None, resumed: Path | None, name: str, console: Any
) -> sources.Source | None:
    """Return the weights that a new run starts from, or None; note them in the config."""
    if given is not None:
        config.start_from = str(given)
    if resumed is not None:
        checkpoint = checkpoints.read(resumed)
        recorded = checkpoints.meta_of(checkpoint).get("started_from") or {}
        if given is not None:
            console.print(f"the weights of {given} are not loaded again, as the run is resumed", markup=False)
        config.start_from = recorded.get("source")
        keep_arguments(config, checkpoints.adopted_arguments(checkpoint))
    if not config.get("start_from") or resumed is not None:
        return None
    config.load_from = None
    source = sources.find_source(config.start_from)
    if source.file is None:
        sources.use_pretrained(config, source)
    else:  # instead of other pretrained weights
        sources.drop_pretrained(config)
    return source


def _start(config: Config, origin: sources.Source, name: str) -> Started:
    """Select the weights of a source with a model of its own, so that errors come before the folder of the run."""
    scope = config.get("default_scope", "mmengine")
    with quiet(), building(name), DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(deepcopy(config.model))  # constructors change their config
    return select_weights(model, config, origin)


def _resume_source(folder: Path, resume: bool | str | os.PathLike, console: Any) -> Path | None:
    if resume is False or resume is None:
        return None
    if resume is not True:
        checkpoints.read(resume)
        return Path(resume)
    found, reasons = checkpoints.newest(folder)
    for reason in reasons:
        console.print(f"warning: skipped {reason}")
    if found is None and reasons:
        raise CheckpointError(f"{folder}: none of the checkpoints can be read; the newest one: {reasons[0]}")
    console.print(f"resuming {found}" if found else f"no checkpoint in {folder}: starting a new run")
    return found


def _seed(config: Config, seed: int | None, source: Path | None) -> int:
    if source is not None:
        saved = checkpoints.meta_of(checkpoints.read(source)).get("seed")
        if saved is not None:
            if seed is not None and seed != saved:
                raise ConfigError(f"{source}: `seed` must be {saved}, that of the run, or None, got {seed}")
            return int(saved)
    if seed is None:
        seed = (config.get("randomness") or {}).get("seed")
    if seed is not None and int(seed) < 0:
        raise ConfigError(f"`seed` must be at least 0, got {seed}")
    return 0 if seed is None else int(seed)


def _config_of_run(folder: Path) -> tuple[Path, str] | None:
    """Return the config of the run in a folder and its text, or None. Other Python files may be next to it."""
    for file in sorted(folder.glob("*.py"), key=lambda p: -p.stat().st_mtime_ns):
        text = file.read_text(errors="replace")
        if re.search(r"^work_dir = ", text, re.MULTILINE):  # as in all configs that a runner writes
            return file, text
    return None


def _prepare_folder(folder: Path, source: Path | None, runner: Runner, earlier: tuple[Path, str] | None) -> None:
    """Move the files of an earlier run to a subfolder, or delete records after the iteration that is resumed."""
    if source is not None:
        meta = checkpoints.meta_of(checkpoints.read(source))
        if source.parent.resolve() == folder.resolve():
            cut_records(folder, int(meta.get("iter", 0)))
        return
    old = [*checkpoints.candidates(folder), *folder.glob("best_*.pth"), *folder.glob(METRICS_FILE)]
    if old:
        aside = folder / f"before_{runner.timestamp}"
        aside.mkdir(exist_ok=True)
        for file in [*old, folder / "last_checkpoint", folder / "curve.png"]:
            if file.is_file():
                file.rename(aside / file.name)
        if earlier is not None:
            file, text = earlier
            write_text(aside / file.name, text)
            if file.name != Path(runner.cfg.filename or "config.py").with_suffix(".py").name:  # not overwritten
                file.unlink()
        tested = folder / "test"
        if any((tested / name).is_file() for name in ("results.json", "robustness.json")):
            tested.rename(aside / "test")
        runner.progress.console.print(f"moved the files of an earlier run to {aside}")


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Raise errors of a run with a one-line message.

    Args:
        name: name of the config.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"{name}: out of GPU memory; reduce train_dataloader.batch_size or the image size, or use `amp`"
        ) from error
    except DataError as error:
        # errors of data workers have the traceback as their message, which ends with the original message
        found = re.findall(r"DataError: (.+)", str(error))
        if "Traceback" in str(error) and found:
            raise DataError(found[-1]) from error
        raise
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and "exited" in str(error):
            raise TrainingError(
                f"{name}: a data worker exited, probably for lack of memory; reduce train_dataloader.num_workers"
            ) from error
        raise


def _device(runner: Runner) -> str:
    device = next(runner.bare_model.parameters()).device
    if device.type == "cuda":
        return f"{runner.world_size} x {torch.cuda.get_device_name(device)}"
    processes = f"{runner.world_size} processes of " if runner.world_size > 1 else ""
    return f"{device.type.upper()}, {processes}{torch.get_num_threads()} threads"


def _result(runner: Runner, folder: Path, name: str, seconds: float) -> TrainResult:
    scored = [r["val"] for r in read_records(folder) if r.get("val")]
    first = next(iter(scored[-1]), None) if scored else None
    best = max((s for s in scored if first in s), key=lambda s: s[first]) if first else {}
    best_files = sorted(folder.glob("best_*.pth"), key=lambda p: -p.stat().st_mtime_ns)
    curve = folder / "curve.png"
    return TrainResult(
        work_dir=folder,
        config=folder / Path(name).with_suffix(".py"),
        checkpoint=next(iter(checkpoints.candidates(folder)), None),
        best=next(iter(best_files), None),
        curve=curve if curve.is_file() else None,
        log=Path(runner.log_dir) / f"{runner.timestamp}.log",
        iterations=runner.iter,
        seconds=seconds,
        metrics=scored[-1] if scored else {},
        best_metrics=best,
        stopped=next((h.reason for h in runner.hooks if isinstance(h, EarlyStoppingHook)), None),
    )
