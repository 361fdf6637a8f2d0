"""Find the weights that a run starts from."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
from mmengine.config import Config

from visionattn.engine.model import find_run
from visionattn.errors import CheckpointError, ConfigError
from visionattn.zoo import known_names, resolve

__all__ = ["Source", "drop_pretrained", "find_source", "use_pretrained"]


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        name: as given by the user.
        file: the weights file, or None for the pretrained weights of the timm model `name`.
    """

    name: str
    file: Path | None


def find_source(given: str | os.PathLike) -> Source:
    """Find the weights to start from.

    Args:
        given: folder of a run, name of a trained model (`visionattn.zoo`), weights file, or name of a pretrained timm
            model.

    Raises:
        ConfigError: there is no such model or file, or the timm model has no pretrained weights.
        CheckpointError: the run has no readable checkpoint, or the file cannot be downloaded.
    """
    name, path = str(given), Path(given).expanduser()
    if path.is_dir():
        return Source(name, find_run(path)[1])
    if name in known_names():
        try:
            return Source(name, resolve(name)[1])
        except CheckpointError as error:  # the file cannot be downloaded
            raise CheckpointError(str(error).replace("give it as `weights`", "give it as `start_from`")) from error
    if path.is_file():
        return Source(name, path)
    if timm.is_model(name.split(".", 1)[0]):
        if not _is_pretrained(name):
            raise ConfigError(f"`start_from` {name!r}: this timm model has no such pretrained weights; give a file")
        return Source(name, None)
    known = [*known_names(), *timm.list_models()]
    if path.parent != Path() or path.suffix in (".pth", ".pt", ".safetensors"):
        known = [str(file) for file in path.parent.glob("*")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`visionattn models` lists the trained models"
    raise ConfigError(f"`start_from` {name!r} is neither a file, a run, a trained model nor a timm model; {hint}")


def use_pretrained(config: Config, source: Source) -> None:
    """Make the backbone of a config load the weights that timm downloads.

    Args:
        config: changed in place.
        source: a timm model.

    Raises:
        ConfigError: the config has another backbone.
    """
    backbone = config.model.get("backbone")
    wanted, found = source.name.split(".", 1)[0], (backbone or {}).get("model_name")
    if not found:
        raise ConfigError(f"`start_from` {source.name!r} is a timm model, but the config has no timm model as backbone")
    if str(found).split(".", 1)[0] != wanted:
        other = found if _is_pretrained(str(found)) else f"a model or file with the backbone {found}"
        raise ConfigError(
            f"`start_from` {source.name!r} does not fit the backbone {found} of the config; set "
            f"model.backbone.model_name={wanted} and the channels of the neck, or start from {other}"
        )
    backbone.update(model_name=source.name if "." in source.name else found, pretrained=True)


def drop_pretrained(config: Config) -> None:
    """Do not load other weights of the backbone first, which would be replaced, in place."""
    backbone = config.model.get("backbone")
    for key in ("pretrained", "init_cfg"):
        if isinstance(backbone, Mapping) and backbone.get(key):
            backbone[key] = None


def _is_pretrained(name: str) -> bool:
    """Return True if timm knows pretrained weights of a model, and those of the tag if the name has one."""
    bare, _, tag = name.partition(".")
    return timm.is_model_pretrained(bare) and (not tag or name in timm.list_pretrained(f"{bare}.*"))
