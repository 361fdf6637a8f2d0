"""The configs of the package: find them by name, list them, and copy one to edit.

They are the folder ``configs`` of the package, or of the repository in a clone. ``index.json`` in it describes each
config; ``docs/generate_configs.py`` writes it. Nothing here reads a config, so OpenMMLab is not required.
"""

import ast
import difflib
import fnmatch
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from visionattn._version import __version__
from visionattn.errors import ConfigError

__all__ = ["PREFIX", "PackageConfig", "config_folder", "copy_config", "find_config", "get_config", "list_configs"]

PREFIX = "visionattn::"
"""Start of the path of a config in the package, such as ``"visionattn::_base_/default_runtime.py"``."""


@dataclass(frozen=True)
class PackageConfig:
    """A config of the package.

    Attributes:
        name: file name without ``.py``, unique in the package.
        path: path of the file.
        job: folder of `visionattn.heads` that it belongs to, such as ``"detection"``.
        model: type of the model or of its head, such as ``"MaskRCNN"``.
        backbone: timm name of the backbone.
        data: dataset.
        published: result of the authors of the model, or None.
        ours: result of this config, trained with this package, or None.
        options: options that training requires, such as ``("custom_data.root=FOLDER",)``.
    """

    name: str
    path: Path
    job: str
    model: str
    backbone: str
    data: str
    published: str | None
    ours: str | None
    options: tuple[str, ...]

    @property
    def words(self) -> str:
        """Everything that a search compares with, in lower case."""
        return " ".join((self.name, self.job, self.model, self.backbone, self.data)).lower()


def config_folder() -> Path:
    """Return the folder of the configs."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(path: str | os.PathLike) -> Path:
    """Return the path of a config file, or of the config of this package that has this name, with or without ``.py``.

    ``visionattn::PATH`` is a file of the package, given by its path in the folder of the configs or by its name. Any
    other path is returned as it is if the file exists, or if there is no such config.
    """
    inside = str(path).startswith(PREFIX)
    path = Path(str(path).removeprefix(PREFIX)).expanduser()
    if inside and (config_folder() / path).is_file():
        return config_folder() / path
    if path.name == str(path) and (inside or not path.is_file()):
        name = path.name if path.suffix == ".py" else f"{path.name}.py"
        path = next(iter(sorted(config_folder().rglob(name))), path)
    return config_folder() / path if inside else path


def list_configs(pattern: str | None = None) -> list[PackageConfig]:
    """Return the configs of the package, sorted by job and name.

    Args:
        pattern: a pattern of names with ``*``, ``?`` or ``[...]``, or a part of the name, job, model, backbone or data.
            Upper and lower case are not distinguished. None returns all configs.

    Raises:
        ConfigError: no config fits the pattern.
    """
    configs = [_entry(values) for values in json.loads((config_folder() / "index.json").read_text(encoding="utf-8"))]
    if pattern is None:
        return configs
    wanted = pattern.lower().removesuffix(".py")
    if any(char in wanted for char in "*?["):
        found = [config for config in configs if fnmatch.fnmatchcase(config.name.lower(), wanted)]
    else:
        found = [c for c in configs if c.name.lower() == wanted] or [c for c in configs if wanted in c.words]
    if not found:
        raise ConfigError(f"{pattern}: no config of the package has this name or description{_similar(pattern)}")
    return found


def _entry(values: Mapping) -> PackageConfig:
    path, options = config_folder() / values["path"], tuple(values["options"])
    return PackageConfig(**{**values, "name": path.stem, "path": path, "options": options})


def get_config(name: str) -> PackageConfig:
    """Return the config of the package with this name, with or without ``.py``.

    Raises:
        ConfigError: there is none.
    """
    found = [config for config in list_configs() if config.name == name.removesuffix(".py")]
    if not found:
        raise ConfigError(f"{name}: no config of the package has this name{_similar(name)}")
    return found[0]


def _similar(name: str) -> str:
    close = difflib.get_close_matches(name.removesuffix(".py"), [c.name for c in list_configs()], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else "; `visionattn configs` lists them"


def copy_config(name: str, target: str | os.PathLike = ".") -> Path:
    """Write a copy of a config of the package, to be edited.

    The copy has the text of the config. The files that it inherits from remain in the package: each path in ``_base_``
    becomes ``visionattn::PATH``, which `visionattn.engine.config.load.load_config` finds from any folder.

    Args:
        name: name of the config, with or without ``.py``.
        target: a folder, or a file that ends in ``.py``. Missing folders are created.

    Returns:
        The file that was written.

    Raises:
        ConfigError: there is no such config, the target is neither, or the file exists.
    """
    config, target = get_config(name), Path(target).expanduser()
    if target.suffix == ".py" and not target.is_dir():
        file = target
    elif target.is_dir() or not target.suffix:
        file = target / f"{config.name}.py"
    else:
        raise ConfigError(f"{target}: the copy of a config must be a folder or a file that ends in .py")
    text = _rebased(config.path)
    # The commands in the comments apply to the copy.
    text = re.sub(rf"(?<=visionattn train ){re.escape(config.name)}(?=\s)", lambda _: file.name, text)
    origin = f"# A copy of {config.name} of visionattn {__version__}; {PREFIX}... are files of the installed package.\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(origin + text)
    except OSError as error:
        if file.exists():
            raise ConfigError(f"{file}: exists and is not overwritten; give the copy another name") from None
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error
    return file


def _rebased(path: Path) -> str:
    """Return the text of a config of the package with the paths in ``_base_`` relative to the folder of all configs."""
    lines = path.read_bytes().splitlines(keepends=True)
    nodes = [
        part
        for statement in ast.parse(b"".join(lines)).body
        if isinstance(statement, ast.Assign) and "_base_" in (getattr(target, "id", "") for target in statement.targets)
        for part in ast.walk(statement.value)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "::" not in part.value
    ]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        base = os.path.relpath(path.parent / node.value, config_folder()).replace(os.sep, "/")
        line = lines[node.lineno - 1]  # columns are counted in bytes
        new = f'"{PREFIX}{base}"'.encode()
        lines[node.lineno - 1] = line[: node.col_offset] + new + line[node.end_col_offset :]
    return b"".join(lines).decode("utf-8")
