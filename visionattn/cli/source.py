"""The trained model of a command: a model by name, a training run, a config, or a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

from visionattn.errors import ConfigError
from visionattn.zoo import known_names, resolve, similar

__all__ = ["find_trained", "is_trained"]

WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")


def is_trained(source: str) -> bool:
    """Return True if an argument names a trained model, and False if it is the name of a timm model."""
    path = Path(source).expanduser()
    if path.is_dir():
        return os.sep in source or any(path.glob("*.py"))
    if path.is_file() or path.suffix in (".py", *WEIGHTS) or source in known_names():
        return True
    return os.sep in source and ":" not in source  # not hf-hub:timm/name


def find_trained(
    source: str | None, checkpoint: str | None = None, options: Sequence[str] = ()
) -> tuple[str | Path, str | Path]:
    """Find the config and the checkpoint of a trained model.

    Args:
        source: name of a model of `visionattn.zoo.known_names`, folder of a training run, config (a file or its name),
            or checkpoint in the folder of its run; None for that of `checkpoint`.
        checkpoint: weights file; None selects that of `source`: the best one of the run, or of
            ``work_dirs/<config name>``.
        options: options of the config, as for `load_config`; they may set its ``work_dir``.

    Returns:
        ``(config, checkpoint)``.

    Raises:
        ConfigError: a folder or file is missing.
        CheckpointError: there is no readable checkpoint.
    """
    from visionattn.engine.config.load import find_config, load_config
    from visionattn.engine.model import find_run

    if source is None:
        if checkpoint is None:
            raise ConfigError("no model given")
        return _config_beside(Path(checkpoint).expanduser()), checkpoint
    path = Path(source).expanduser()
    if path.is_dir():
        config, best = find_run(path)
        return config, checkpoint or best
    if source in known_names():
        return resolve(source, checkpoint)
    if path.suffix in WEIGHTS:
        return _config_beside(path), path
    config = find_config(path)
    if path.suffix != ".py" and not config.is_file():
        raise ConfigError(f"{source}: no such work dir, config or model; {similar(source)}")
    if checkpoint is None:
        work_dir = Path(load_config(config, options, resolve_data=False).get("work_dir") or f"work_dirs/{config.stem}")
        if not work_dir.is_dir():
            raise ConfigError(f"{work_dir}: no such work dir, so `config` requires `checkpoint`")
        checkpoint = str(find_run(work_dir)[1])
    return config, checkpoint


def _config_beside(checkpoint: Path) -> Path:
    configs = sorted(checkpoint.parent.glob("*.py"), key=lambda file: file.stat().st_mtime_ns)
    if not configs:
        raise ConfigError(f"`checkpoint` requires `config`, since {checkpoint.parent} contains no config (*.py)")
    return configs[-1]
