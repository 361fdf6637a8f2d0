"""The Runner of mmengine with safe checkpoints, exact resuming, checks for NaN, and progress on the console."""

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner as StockRunner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

import visionattn
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import keep_arguments
from visionattn.engine.config.class_names import config_classes
from visionattn.engine.train.bad_samples import BadSamples
from visionattn.engine.train.guard import FiniteGuard
from visionattn.engine.train.hooks import CheckpointHook, SameBuffersHook, StopHook
from visionattn.engine.train.loops import EpochLoop, IterLoop
from visionattn.engine.train.processes import connect
from visionattn.engine.train.progress import ProgressHook, RecordHook
from visionattn.engine.train.randomness import with_named_errors
from visionattn.engine.train.resuming import restore
from visionattn.engine.train.same_size import evaluate_by_size
from visionattn.engine.weights import convert, fit
from visionattn.errors import CheckpointError, DataError
from visionattn.io.images import image_size

if TYPE_CHECKING:
    from visionattn.engine.train.finetune.start import Started

__all__ = ["Runner"]

_COUNT = itertools.count()
LOOKED_AT = 20

# Entries of the message hub that belong to the current process and are not restored when resuming.
_NOT_RESUMED = {
    "cfg", "seed", "experiment_name", "mmengine_version", "max_epochs", "max_iters", "dataset_meta", "loop_stage",
    "eta", "epoch", "iter",
}  # fmt: skip


def dataset_meta(dataset: Any) -> dict[str, Any] | None:
    """Return the meta information of a dataset, with the ``category_ids`` of its classes if it is a COCO dataset.

    Wrappers such as ``RepeatDataset`` have the ids of their dataset, and ``ConcatDataset`` those of its datasets if
    they are the same in all.
    """
    meta, ids = getattr(dataset, "metainfo", None), getattr(dataset, "cat_ids", None)
    parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if ids is None and parts[0] is not None:
        found = [(dataset_meta(part) or {}).get("category_ids") for part in parts]
        ids = found[0] if all(part == found[0] for part in found) else None
    if meta is None or ids is None or len(ids) != len(meta.get("classes") or ()):
        return meta
    return {**meta, "category_ids": tuple(int(value) for value in ids)}


def typical_size(dataset: Any) -> tuple[int, int] | None:
    """Return the median width and height in pixels of up to `LOOKED_AT` images spread over a dataset, or None.

    The sizes are those in the annotations, or in the headers of the files.
    """
    if not hasattr(dataset, "get_data_info") or not len(dataset):
        return None
    sizes = []
    for index in sorted(set(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int).tolist())):
        info = dataset.get_data_info(index)
        path = info.get("img_path") if isinstance(info, Mapping) else None
        if path is None:
            continue
        try:
            sizes.append(
                (info["width"], info["height"]) if {"width", "height"} <= info.keys() else image_size(Path(path))[:2]
            )
        except DataError:  # reported where the image is used
            continue
    if not sizes:
        return None
    width, height = np.median(sizes, axis=0)
    return int(width), int(height)


class Runner(StockRunner):
    """A Runner with the arguments of mmengine's Runner and these differences:

    - checkpoints only contain tensors and plain values and are written atomically, and resuming requires that all
      tensors match;
    - ``EpochBasedTrainLoop``, ``IterBasedTrainLoop`` and ``CheckpointHook`` are replaced by those of this package;
    - the log is written to the log file, and `ProgressHook` shows progress on the console;
    - a NaN or infinite loss or gradient stops training before the optimizer step;
    - images of different sizes in a batch are validated and tested separately, as without padding.
    """

    bad_samples: BadSamples | None = None  # None: an unreadable sample stops the run
    started: "Started | None" = None  # weights of another model to start from
    _started_from: dict[str, Any] | None = None
    adopted: Mapping[str, str] = MappingProxyType({})  # see `checkpoints.adopted_arguments`
    validated: frozenset[int] = frozenset()  # iterations with a recorded validation, when resuming

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the environment as mmengine does, but connect the processes with `processes.connect`."""
        if self.distributed:
            connect(self.cfg)
        super().setup_env(env_cfg)
        # Loggers, message hubs and visualizers are global and identified by name. Runs in one process must not share
        # them, even if they start within the same second.
        self._serial = f"{os.getpid()}_{next(_COUNT)}"
        self.cfg.experiment_name = None

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger of the run, which only writes to its file."""
        self._experiment_name = f"{self._experiment_name}_{self._serial}"
        kwargs["name"] = self._experiment_name
        logger = super().build_logger(*args, **kwargs)
        logger.handlers = [h for h in logger.handlers if hasattr(h, "baseFilename")]
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """Build the visualizer, with local files and, if installed, TensorBoard."""
        if visualizer is None or isinstance(visualizer, dict):
            visualizer = deepcopy(dict(visualizer or {"type": "Visualizer"}))
            visualizer["name"] = f"{visualizer.get('name', 'visualizer')}_{self._serial}"
            backends = list(visualizer.get("vis_backends") or [])
            kinds = {str(b.get("type")).rsplit(".", 1)[-1] for b in backends}
            if "LocalVisBackend" not in kinds:
                backends.append({"type": "mmengine.LocalVisBackend"})
            if "TensorboardVisBackend" not in kinds and _has_tensorboard():
                backends.append({"type": "mmengine.TensorboardVisBackend"})
            visualizer["vis_backends"] = backends
        return super().build_visualizer(visualizer)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a dataloader as mmengine does, with the name of the image in the errors of unreadable images."""
        return with_named_errors(StockRunner.build_dataloader(dataloader, seed, diff_rank_seed))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed training as mmengine does, and evaluate images of each size separately."""
        if self._train_dataloader is None:  # without training, nothing is synchronized
            return evaluate_by_size(model.to(get_device()))
        return evaluate_by_size(super().wrap_model(model_wrapper_cfg, model))

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training loop, replacing the loops of mmengine by loops that can resume at any iteration."""
        if isinstance(loop, dict):
            loop = deepcopy(dict(loop))
            kind = str(loop.pop("type", "")).rsplit(".", 1)[-1]
            stock = {"EpochBasedTrainLoop": EpochLoop, "IterBasedTrainLoop": IterLoop}
            if not kind:
                kind = "EpochBasedTrainLoop" if loop.pop("by_epoch", True) else "IterBasedTrainLoop"
            if kind in stock:
                return stock[kind](runner=self, dataloader=self._train_dataloader, **loop)
            loop["type"] = kind
        return super().build_train_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer wrapper, with the checks of `FiniteGuard`."""
        built = super().build_optim_wrapper(optim_wrapper)
        if not getattr(built, "_guarded", False):
            self.guard.install(built)
            built._guarded = True
        return built

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register the default hooks, with this package's hooks for checkpoints, progress and stopping."""
        hooks = deepcopy(dict(hooks or {}))
        given = hooks.get("checkpoint", {"interval": 1})
        if isinstance(given, dict):
            kind = str(given.get("type", "CheckpointHook")).rsplit(".", 1)[-1]
            if kind == "CheckpointHook":
                hooks["checkpoint"] = {**given, "type": "visionattn.CheckpointHook"}
        logger = hooks.get("logger") or {}
        interval = logger.get("interval", 10) if isinstance(logger, dict) else logger.interval
        super().register_default_hooks(hooks)
        self.guard = FiniteGuard(self)
        if limit := int(self.cfg.get("max_bad_samples") or 0):
            self.bad_samples = BadSamples(limit, Path(self.work_dir), self.note)
        self.progress = ProgressHook(interval=interval)
        self.stopper = StopHook()
        self.register_hook(SameBuffersHook())
        self.register_hook(self.guard)
        self.register_hook(RecordHook(self.progress))
        self.register_hook(self.progress)
        self.register_hook(self.stopper)

    def note(self, line: str) -> None:
        """Write a line to the log and the console."""
        self.logger.warning(line)
        self.progress.console.print(line, markup=False)

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The record of the weights that the run started from, also if it was resumed since."""
        return self.started.record if self.started is not None else self._started_from

    @property
    def checkpoint_hook(self) -> CheckpointHook | None:
        """The checkpoint hook, or None if the config disables it."""
        return next((h for h in self.hooks if isinstance(h, CheckpointHook)), None)

    # checkpoints

    @property
    def bare_model(self) -> nn.Module:
        """The model without its wrapper for distributed training."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Load weights, with the names of this package or of published checkpoints.

        The report is in the attribute ``weights``, in the log and, in short, on the console.

        Args:
            filename: a path, a URL, or a name such as ``torchvision://resnet50``.
            map_location: see `torch.load`.
            strict: names and shapes of all tensors must match. Otherwise, class layers may have another number of
                classes, and, with the config key ``partial``, other tensors may be missing or differ as well.
            revise_keys: regular expressions and their replacements in parameter names. None removes the prefix
                ``module.`` of ``DistributedDataParallel``.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: the checkpoint cannot be read safely, or does not fit the model.
        """
        checkpoint = checkpoints.load(filename, map_location)
        converted = convert(self.bare_model, checkpoint, config_classes(self.cfg), revise_keys)
        checkpoint["state_dict"] = OrderedDict(converted.weights)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        converted.weights = dict(checkpoint["state_dict"])  # the hook of averaged weights exchanges them
        self.weights = fit(
            self.bare_model,
            converted,
            filename,
            config=self.cfg,
            finetune=not strict,
            partial=not strict and bool(self.cfg.get("partial")),
            meta=checkpoint.get("meta"),
        )
        self._has_loaded = True
        self.adopted = converted.arguments or checkpoints.adopted_arguments(checkpoint)
        if keep_arguments(self.cfg, self.adopted):  # which the checkpoints of the run are used with
            self.dump_config()
        if lines := self.weights.lines():
            self.logger.info(str(self.weights))
            for line in lines:
                self.progress.console.print(line, markup=False)
        return checkpoint

    def load_or_resume(self) -> None:
        """Load or resume according to ``started``, ``load_from`` and ``resume``.

        Without a path, the newest readable checkpoint in the work dir is resumed.
        """
        if self._has_loaded:
            return
        if self.started is not None:
            self.bare_model.load_state_dict(self.started.weights, strict=False)
            self.adopted = self.started.adopted
            self.logger.info("\n".join(self.started.lines))
            self._has_loaded = True
            return
        source = self._load_from
        if self._resume and source is None:
            found, _ = checkpoints.newest(self.work_dir)
            source = str(found) if found else None
        if source is None:
            return
        if self._resume:
            self.resume(source)
        else:
            self.load_checkpoint(source)
        self._has_loaded = True

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Resume a run: weights, optimizer, schedulers, log history and position in the data.

        Args:
            filename: the checkpoint.
            resume_optimizer: restore the state of the optimizer.
            resume_param_scheduler: restore the state of the schedulers.
            map_location: see `torch.load`.

        Raises:
            CheckpointError: the file cannot be read, does not match the config, or has no training state.
        """
        checkpoint = self.load_checkpoint(filename, map_location, strict=True)
        meta = checkpoints.meta_of(checkpoint)
        if "iter" not in meta or (resume_optimizer and "optimizer" not in checkpoint):
            raise CheckpointError(
                f"{filename}: contains weights but no training state; resume from an iter_*.pth or epoch_*.pth file, "
                "or set load_from to this file in the config to start a new run"
            )
        if "ema_state_dict" in checkpoint and not any(isinstance(h, EMAHook) for h in self.hooks):
            raise CheckpointError(f"{filename}: was saved with averaged weights; resume with `ema`")
        self._started_from = meta.get("started_from")
        loop = self.train_loop
        loop._epoch, loop._iter = int(meta.get("epoch", 0)), int(meta["iter"])
        length = meta.get("batches_per_epoch")
        if isinstance(loop, EpochLoop) and length and length != len(loop.dataloader):
            loop._iter = loop._epoch * len(loop.dataloader)
            self.logger.info(f"an epoch had {length} batches and has {len(loop.dataloader)}; resuming at its start")
        hub = checkpoint.get("message_hub")
        if hub:
            kept = {k: v for k, v in hub["runtime_info"].items() if k not in _NOT_RESUMED}
            names = set(hub["log_scalars"]) | set(kept)
            flags = {k: v for k, v in hub["resumed_keys"].items() if k in names}
            self.message_hub.load_state_dict({**hub, "runtime_info": kept, "resumed_keys": flags})
        schedulers = checkpoint.get("param_schedulers") if resume_param_scheduler else None
        try:
            if resume_optimizer:
                self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
                restored = restore(self, checkpoint["optimizer"], schedulers)
                self._restore_gradients(checkpoint.get("gradients") or {})
                if restored.changes:
                    self.note(f"the config has changed since: {', '.join(restored.changes)}")
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{filename}: the optimizer state does not match the config ({error}); resume with the config of the "
                "run, or set load_from to this file in the config to start a new run"
            ) from error
        self.logger.info(f"resumed {filename} at epoch {self.epoch}, iteration {self.iter}")

    def _restore_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.bare_model.named_parameters())
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.to(parameters[name])

    def _pending_gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients accumulated since the last optimizer step, averaged over the processes."""
        wrapper = self.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        if all(w._accumulative_counts == 1 or w.should_update() for w in wrappers):
            return {}
        pending = {n: p.grad for n, p in self.bare_model.named_parameters() if p.requires_grad}
        if self.world_size == 1:
            return {n: g for n, g in pending.items() if g is not None}
        result = {}
        for name, parameter in self.bare_model.named_parameters():
            if name in pending:
                result[name] = torch.zeros_like(parameter) if pending[name] is None else pending[name].clone()
                torch.distributed.all_reduce(result[name])
                result[name] /= self.world_size
        return result

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint atomically. All processes must call it; the first one writes the file.

        Args:
            out_dir, filename: where to write.
            file_client_args, backend_args: None or a local backend.
            save_optimizer: include the state of the optimizer.
            save_param_scheduler: include the state of the schedulers.
            meta: further metadata; ``epoch`` and ``iter`` replace the current ones.
            by_epoch: an epoch ends with this checkpoint, rather than an iteration.

        Raises:
            CheckpointError: the file cannot be written, or another backend is requested.
        """
        checkpoints.check_backend(file_client_args, backend_args)
        gradients = self._pending_gradients() if save_optimizer else {}
        optimizer = self.optim_wrapper.state_dict() if save_optimizer else {}  # may be sharded over the processes
        if not is_main_process():
            return
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        dataset = self.train_dataloader.dataset
        if self.started_from:
            meta["started_from"] = self.started_from
        if self.adopted:
            meta["adopted"] = dict(self.adopted)
        meta.update(
            seed=self.seed,
            config_name=Path(self.cfg.filename).name if self.cfg.filename else None,
            config=self.cfg.pretty_text,
            batches_per_epoch=len(self.train_dataloader),
            dataset_meta=dataset_meta(dataset),
            image_size=typical_size(dataset),
            time=time.strftime("%Y-%m-%d %H:%M:%S"),
            versions={"visionattn": visionattn.__version__, "torch": str(torch.__version__)},
        )
        hub = self.message_hub.state_dict()
        hub["runtime_info"] = {k: v for k, v in hub["runtime_info"].items() if k not in _NOT_RESUMED}
        content: dict[str, Any] = {"meta": meta, "state_dict": self.bare_model.state_dict(), "message_hub": hub}
        if save_optimizer:
            content["optimizer"] = optimizer
            if gradients:
                content["gradients"] = gradients
        if save_param_scheduler and self.param_schedulers is not None:
            if isinstance(self.param_schedulers, dict):
                content["param_schedulers"] = {
                    name: [_numbers(s) for s in group] for name, group in self.param_schedulers.items()
                }
            else:
                content["param_schedulers"] = [_numbers(s) for s in self.param_schedulers]
        self.call_hook("before_save_checkpoint", checkpoint=content)
        checkpoints.write(content, Path(out_dir) / filename)

    @master_only
    def dump_config(self) -> None:
        """Write the resolved config to the work dir, without ``resume``, so that it can be used for a new run."""
        name = Path(self.cfg.filename).name if self.cfg.filename else "config.py"
        config = self.cfg
        if config.get("resume"):
            config = deepcopy(config)
            config.resume, config.load_from = False, None
        checkpoints.write_text(Path(self.work_dir) / Path(name).with_suffix(".py"), config.pretty_text)


def _numbers(scheduler: Any) -> dict[str, Any]:
    """Return the state of a scheduler without functions, which one-cycle schedulers store and recreate."""
    return {key: value for key, value in scheduler.state_dict().items() if not callable(value)}


def _has_tensorboard() -> bool:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return False
    return is_main_process()
