"""The module that configs import to use this package with OpenMMLab.

``custom_imports = dict(imports=["visionattn.openmmlab"])`` makes the types of this package available to configs as
``visionattn.<Name>``, such as ``visionattn.Backbone``. Importing the module

- supplies mmcv's compiled operators where they are missing, since mmdet cannot be imported without them, and
- creates the registries, whose types are imported when one of them is first looked up.

It changes nothing else; see `visionattn.engine.compat.install` for the changes that the commands make. Registered
classes are also attributes of this module: ``from visionattn.openmmlab import Backbone``.
"""

import importlib.util
from typing import Any

from visionattn.engine import registry
from visionattn.errors import ConfigError
from visionattn.inference.job import add_job_modules

__all__ = ["JOBS", "add_job"]

JOBS = (
    "visionattn.heads.detection",
    "visionattn.heads.segmentation",
    "visionattn.heads.localization",
    "visionattn.heads.forgery",
    "visionattn.heads.lidar",
    "visionattn.heads.action",
    "visionattn.heads.super_resolution",
)
"""Packages of the jobs. A new job is added by its name here, or from outside of this package with `add_job`."""


def add_job(package: str) -> None:
    """Make a job available to configs and to the commands.

    A job is a package with the modules ``job``, which describes its inputs and outputs
    (see `visionattn.inference.job`), and, unless it only uses types of mmdet and mmseg, ``mmlab``, whose import
    registers its models, datasets, transforms and metrics with `visionattn.engine.registry`. Both are imported when
    they are first needed. Adding a job twice has no further effect.

    Args:
        package: dotted name of the package.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        has_types = importlib.util.find_spec(f"{package}.mmlab") is not None
    except ImportError as error:
        raise ConfigError(f"`package` must be an importable package, got {package!r} ({error})") from error
    add_job_modules((package,))
    if has_types:
        registry.add_location(f"{package}.mmlab")


def __getattr__(name: str) -> Any:
    found = None if name.startswith("__") else registry.find_type(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *registry.type_names()})


for _job in JOBS:
    add_job(_job)
