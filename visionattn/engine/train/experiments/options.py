"""Training options that log to a tracking server."""

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

from mmengine.config import Config

from visionattn.engine.train.experiments.backends import MlflowBackend
from visionattn.errors import ConfigError, MissingDependencyError

__all__ = ["drop_backends", "use_mlflow", "use_wandb"]

WANDB_ID, MLFLOW_ID = "wandb_id", "mlflow_id"
"""Files in the work dir with the ids of the runs on the servers, for resuming."""


def drop_backends(config: Config) -> None:
    """Remove the backends that these options have added, as the config of a finished run has them.

    Args:
        config: changed in place.
    """
    visualizer = config.get("visualizer")
    if visualizer and visualizer.get("vis_backends"):
        added = ("visionattn.WandbBackend", "visionattn.MlflowBackend")
        visualizer.vis_backends = [b for b in visualizer.vis_backends if b.get("type") not in added]


def use_wandb(config: Config, project: str | None, folder: Path, resumed: bool) -> None:
    """Log losses, metrics, the config and the best checkpoint to Weights & Biases (W&B).

    Args:
        config: changed in place.
        project: name of the W&B project; None uses WANDB_PROJECT or the default of wandb.
        folder: the work dir.
        resumed: continue the W&B run of the work dir.

    Raises:
        MissingDependencyError: wandb is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError("`wandb` requires the package wandb; run: pip install wandb")
    file = folder / WANDB_ID
    if not (resumed and file.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12])
    init = {"id": file.read_text().strip(), "name": folder.name, "resume": "allow"}
    if project:
        init["project"] = project
    _add(config, "Wandb", {"type": "visionattn.WandbBackend", "init_kwargs": init, "folder": str(folder)})


def use_mlflow(config: Config, experiment: str | None, folder: Path, resumed: bool) -> None:
    """Log losses, metrics, the config and the best checkpoint to MLflow.

    Args:
        config: changed in place.
        experiment: name of the experiment; None uses MLFLOW_EXPERIMENT_NAME, or ``visionattn``.
        folder: the work dir.
        resumed: continue the MLflow run of the work dir.

    Raises:
        MissingDependencyError: mlflow is not installed.
        ConfigError: the server cannot be reached.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise MissingDependencyError("`mlflow` requires the package mlflow; run: pip install mlflow")
    file, name = folder / MLFLOW_ID, experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "visionattn"
    before = file.read_text().strip() if resumed and file.is_file() else None
    try:
        run_id = MlflowBackend("", name, str(folder), before).run_id
    except Exception as error:  # of the client, of many types
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"`mlflow`: the server cannot be used ({reason}); set MLFLOW_TRACKING_URI") from error
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(run_id)
    options = {"type": "visionattn.MlflowBackend", "experiment": name, "folder": str(folder), "run_id": run_id}
    _add(config, "Mlflow", options)


def _add(config: Config, kind: str, backend: dict[str, Any]) -> None:
    """Add a backend to the visualizer of a config, in place of one of the same kind."""
    visualizer = dict(config.get("visualizer") or {"type": "Visualizer"})
    backends = [b for b in visualizer.get("vis_backends") or [] if kind not in str(b.get("type"))]  # those of mmengine
    visualizer["vis_backends"] = [*backends, backend]
    config.visualizer = visualizer
