"""Backends of the visualizer that send metrics, config and results to a tracking server."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.visualization import BaseVisBackend, WandbVisBackend

from visionattn.engine.registry import VISBACKENDS
from visionattn.engine.train.curve import METRICS_FILE, draw_curve
from visionattn.engine.train.progress import screen
from visionattn.errors import require

__all__ = ["MlflowBackend", "WandbBackend"]

LOGGED = ("model.type", "model.backbone", "optim_wrapper", "train_cfg", "train_dataloader.batch_size", "randomness")
"""Keys of the config that MLflow shows as parameters; the whole config is a file."""
BATCH = 100
"""Largest number of parameters in one request to an MLflow server."""


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """The W&B backend of mmengine, without uploading all Python files in the current folder.

    Args:
        folder: the work dir, whose learning curve and best checkpoint are uploaded at the end of the run.
        **options: see ``WandbVisBackend``.
    """

    def __init__(self, save_dir: str, folder: str | None = None, **options: Any) -> None:
        super().__init__(save_dir, **options)
        self._folder = folder

    def add_config(self, config: Config, **kwargs: Any) -> None:  # the signature of mmengine, which passes no kwargs
        """Log the config, which may differ from that of the run that is resumed."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)

    def close(self) -> None:
        """Upload the files, and end the run."""
        if self._folder is not None and hasattr(self, "_wandb"):
            for file in _results(Path(self._folder)):
                self._wandb.save(str(file), base_path=self._folder, policy="now")
        super().close()


def _tolerant(method: Callable) -> Callable:
    """Turn an error of the server, which must not end a training run, into a printed warning."""

    @wraps(method)
    def call(self: "MlflowBackend", *args: Any, **kwargs: Any) -> None:
        if self.failed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # of the client, of many types
            self.failed = True
            reason = " ".join(str(error).split())[:200]
            screen().print(f"warning: MLflow: {reason}; the rest of the run is not logged there", markup=False)

    return call


@VISBACKENDS.register_module()
class MlflowBackend(BaseVisBackend):
    """Logs the config, the metrics and, at the end, the learning curve and the best checkpoint to MLflow.

    The server is that of ``MLFLOW_TRACKING_URI``, or MLflow's default. If it fails during a run, a warning is issued,
    and the run continues.

    Args:
        save_dir: passed by the visualizer, and not used.
        experiment: name of the experiment, which is created if necessary.
        folder: the work dir.
        run_id: the MLflow run to continue, or None for a new one.

    Attributes:
        run_id: id of the MLflow run.
        failed: the server has failed.
    """

    def __init__(self, save_dir: str, experiment: str, folder: str, run_id: str | None = None) -> None:
        super().__init__(save_dir or folder)
        self.folder, self.failed = Path(folder), False
        self._client = require("mlflow").MlflowClient()
        if run_id is None:
            found = self._client.get_experiment_by_name(experiment)
            number = self._client.create_experiment(experiment) if found is None else found.experiment_id
            run_id = self._client.create_run(number, run_name=self.folder.name).info.run_id
        else:
            self._client.update_run(run_id, "RUNNING")
        self.run_id = run_id

    def _init_env(self) -> None:
        """Do nothing: the run is created in the constructor."""

    @property
    def experiment(self) -> Any:
        """The MLflow client."""
        return self._client

    @_tolerant
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Log the config as a file, and its most important values as parameters."""
        entities = require("mlflow.entities")
        self._client.log_text(self.run_id, config.pretty_text, "config.py")
        known = self._client.get_run(self.run_id).data.params  # those of a resumed run cannot be changed
        values = [(key, str(value)[:500]) for key, value in _flat(config.to_dict()) if key.startswith(LOGGED)]
        params = [entities.Param(key, value) for key, value in values if key not in known]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + BATCH])

    @_tolerant
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Log one metric."""
        self._client.log_metric(self.run_id, name, float(value), step=step)

    @_tolerant
    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, file_path: Any = None, **kwargs: Any) -> None:
        """Log several metrics."""
        metric, now = require("mlflow.entities").Metric, int(time.time() * 1000)
        numbers = {name: float(value) for name, value in scalar_dict.items() if not isinstance(value, str)}
        step = int(numbers.pop("step", step))
        metrics = [metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    @_tolerant
    def close(self) -> None:
        """Log the files, and end the run."""
        for file in _results(self.folder):
            self._client.log_artifact(self.run_id, str(file))
        self._client.set_terminated(self.run_id)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers, texts and flags of nested mappings, with keys such as ``optim_wrapper.optimizer.lr``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float, bool)):
            yield f"{prefix}{key}", value


def _results(folder: Path) -> list[Path]:
    """Return the learning curve, the metrics and the best checkpoint of a work dir, as far as they exist."""
    draw_curve(folder, folder.name)
    best = sorted(folder.glob("best_*.pth"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    return [path for path in (folder / "curve.png", folder / METRICS_FILE, *best) if path.is_file()]
