"""Read config files. Errors in them are raised as `ConfigError` with the file, the key and the remedy in one line."""

import ast
import difflib
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

from visionattn.engine.config.custom_data import SPLITS, resolve_custom_data
from visionattn.engine.config.options import check_key, close_matches, is_known, resembles
from visionattn.engine.config.schedules import fit_length
from visionattn.engine.config.variables import read_file, read_with, unused_overrides, variables_read
from visionattn.errors import ConfigError, VisionattnError
from visionattn.io.configs import PREFIX, config_folder, find_config

__all__ = ["apply_options", "find_config", "load_config", "parse_options"]


def load_config(
    path: str | os.PathLike,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    resolve_data: bool = True,
) -> Config:
    """Read a config file, apply options, and fill in the datasets of a ``custom_data`` block.

    The file is executed as Python code: only load files that you trust.

    Args:
        path: the config file, ``.py`` in mmengine's text form (``_base_`` and plain variables), or the name of a config
            of this package, such as ``"mask-rcnn_dinat-mini_fpn_ms-3x_coco"``. Its ``_base_`` may name files of this
            package: ``"visionattn::_base_/default_runtime.py"``.
        cfg_options: ``{"train_cfg.max_iters": 100}`` or ``["train_cfg.max_iters=100"]``. Each key must exist in the
            config or be an argument of the class that it configures. A key may name a variable of the file from which
            other keys are computed, such as ``max_iters``; these follow. With another ``train_cfg.max_iters`` or
            ``max_epochs``, the schedules follow (`visionattn.engine.config.schedules`).
        resolve_data: fill in a ``custom_data`` block; see `visionattn.engine.config.custom_data`.

    Returns:
        The config.

    Raises:
        ConfigError: the file or one of its ``_base_`` files is missing or invalid, the config has no ``model``, or
            an option has an unknown key.
        DataError: the annotation files of ``custom_data`` are missing or malformed.
    """
    path = find_config(path)
    files = _check_file(path, [])
    config = _read(path, lambda: read_file(path))
    if "model" not in config:
        raise ConfigError(f"{path}: has no key 'model'; only use it as the _base_ of other configs")
    _check_overrides(config, files)
    options = cfg_options if isinstance(cfg_options, Mapping) else parse_options(cfg_options or ())
    if options:
        config = _with_options(config, path, files, options)
    if resolve_data:
        resolve_custom_data(config, str(path))
        _check_kept(config, options)
    for name in SPLITS.values():
        loader = config.get(name)
        if isinstance(loader, Mapping) and loader.get("num_workers") == 0 and "persistent_workers" in loader:
            loader["persistent_workers"] = False  # which PyTorch refuses without workers
    return config


def _read(path: Path, read: Callable[[], Config]) -> Config:
    """Call `read`, and raise its errors with the place in the file."""
    try:
        return read()
    except VisionattnError:
        raise
    except ImportError as error:
        raise ConfigError(f"{path}: an import fails ({_short(error)})") from error
    except (ConfigParsingError, KeyError) as error:
        raise ConfigError(f"{_place(path, error)}: {_short(error)}") from error
    except Exception as error:  # configs are programs and can raise any error
        raise ConfigError(f"{_place(path, error)}: {type(error).__name__}: {_short(error)}") from error


# --- files -----------------------------------------------------------------------------------------------------


def _check_file(path: Path, chain: list[Path]) -> list[Path]:
    """Check a config and its bases for errors that mmengine reports unclearly, and return these files, bases last.

    Args:
        path: the file.
        chain: the files that lead to it by ``_base_``.

    Raises:
        ConfigError: a file is missing, has a syntax error, or includes itself.
    """
    came_from = f"{chain[-1]}: its _base_ {path}" if chain else str(path)
    if not path.is_file():
        what = "is a folder; give a config file in it" if path.is_dir() else "does not exist"
        raise ConfigError(f"{came_from} {what}{_similar(path)}")
    if path.suffix not in (".py", ".json", ".yaml", ".yml"):
        raise ConfigError(f"{came_from} is not a config: it must be a .py file")
    if path.resolve() in chain:
        raise ConfigError(f"{came_from} includes itself")
    if path.suffix != ".py":
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{came_from} cannot be read as text ({error})") from error
    try:
        tree = ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:
        if "{{$" in text:  # mmengine substitutes environment variables before Python parses the text
            return [path]
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{path}{f', line {line}' if line else ''}: {getattr(error, 'msg', error)}") from error
    files = [path]
    for base in _bases(tree):
        if "::" not in base:
            files += _check_file(Path(os.path.normpath(path.parent / base)), [*chain, path.resolve()])
        elif base.startswith(PREFIX):
            files += _check_file(find_config(base), [*chain, path.resolve()])
    return files


def _bases(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "_base_" for t in node.targets):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [value] if isinstance(value, str) else [str(v) for v in value]
    return []


def _similar(path: Path) -> str:
    """Return ``; did you mean ...?`` with similar files of the same folder, and similar names of the package."""
    names = {file.stem: file.stem for file in config_folder().rglob("*.py") if "_base_" not in file.parts}
    if path.parent.is_dir():
        names |= {file.stem: os.path.relpath(file) for file in path.parent.glob("*.py")}
    close = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(names[name] for name in close)}?" if close else ""


def _place(path: Path, error: BaseException) -> str:
    """Return the config file and the line that raised an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".py")]
    chosen = [f for f in frames if f.name == "<module>" and "site-packages" not in f.filename]
    for frame in reversed(chosen):
        if Path(frame.filename).resolve() == path.resolve() or Path(frame.filename).parent.is_dir():
            return f"{os.path.relpath(frame.filename)}, line {frame.lineno}"
    return str(path)


def _short(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:300]


def _check_overrides(config: Config, files: Sequence[Path]) -> None:
    """Raise `ConfigError` for variables that seem to act and do not.

    These are variables that only a base config reads, and misspelled ones.
    """
    path, read = files[0] if files else None, variables_read(files)
    for number, file in enumerate(files):
        for name in unused_overrides(file, files[number + 1 :]):
            if is_known(name) or name not in config:
                continue
            value = config[name]
            wanted = _read(path, lambda value=value, name=name: read_with(path, lambda *_: value, {name}))
            if _acting(wanted) != _acting(config):
                raise ConfigError(
                    f"{file}: `{name}` has no effect, as only the base config reads it, before this file is evaluated; "
                    f"set the keys that it feeds{_feeds(config, name, config.get(name))}"
                )
    for name in config:
        if not is_known(name) and name not in read and (close := resembles(name, read)):
            raise ConfigError(f"{files[0]}: `{name}` is not used; did you mean {close}?")


# --- options ---------------------------------------------------------------------------------------------------


def _with_options(config: Config, path: Path, files: Sequence[Path], options: Mapping[str, Any]) -> Config:
    """Return the config with the options applied, those of variables by evaluating the files again."""
    read, scope = variables_read(files), config.get("default_scope")
    indirect = {k: v for k, v in options.items() if not is_known(k.split(".")[0]) and k.split(".")[0] in read}
    for key in options:
        name = key.split(".")[0]
        if key not in indirect and name in config and not is_known(name):
            raise ConfigError(f"`cfg_options` {key}: no part of the config reads the variable {name!r}")
    result = deepcopy(config)
    if indirect:
        for key, value in indirect.items():  # each one must act
            result = _evaluated(path, {key: value}, scope)
            if _acting(result) == _acting(config) and not _is_same(config, key, value):
                raise ConfigError(
                    f"`cfg_options` {key}: changes nothing, as the config replaces what is computed from it"
                    f"{_feeds(config, key, _at(config, key))}"
                )
        if len(indirect) > 1:
            result = _evaluated(path, indirect, scope)
    apply_options(result, {k: v for k, v in options.items() if k not in indirect})
    if not any(key.startswith("param_scheduler") for key in options):
        given = result.train_cfg.get("val_interval") if result.get("train_cfg") else None
        fit_length(result, config)
        if "train_cfg.val_interval" in options:
            result.train_cfg.val_interval = given
    return result


def _evaluated(path: Path, options: Mapping[str, Any], scope: str | None) -> Config:
    """Return the config with options applied to its variables where they are assigned.

    A base may assign a variable of another structure, which an option does not fit; it must fit the last assignment.
    """
    failed: dict[str, ConfigError] = {}

    def change(name: str, value: Any) -> Any:
        box = {name: deepcopy(value)}
        try:
            apply_options(box, {key: v for key, v in options.items() if key.split(".")[0] == name}, scope)
        except ConfigError as error:
            failed[name] = error
            return value
        failed.pop(name, None)
        return box[name]

    names = {key.split(".")[0] for key in options}
    config = _read(path, lambda: read_with(path, change, names))
    for error in failed.values():
        raise error
    return config


def _acting(config: Config) -> dict[str, Any]:
    """Return the parts of a config that are read, without its variables."""
    return {key: value for key, value in config.to_dict().items() if is_known(key)}


def _at(config: Any, key: str) -> Any:
    """Return the value at a dotted key, or None."""
    here = config
    for part in _split(config, key):
        here = _child(here, part)
    return here


def _child(node: Any, part: str) -> Any:
    try:
        return node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _split(config: Any, key: str) -> list[str]:
    """Split a dotted key. Names in the config that contain dots, such as those in ``custom_keys``, remain whole."""
    parts, rest, here = [], key.split("."), config
    while rest:
        names = [".".join(rest[:count]) for count in range(len(rest), 1, -1)]
        part = next((n for n in names if isinstance(here, (Mapping, Config)) and n in here), rest[0])
        rest = rest[part.count(".") + 1 :]
        parts.append(part)
        here = _child(here, part)
    return parts


def _is_same(config: Config, key: str, value: Any) -> bool:
    old = _at(config, key)
    return (_value(value, old, key) if isinstance(value, str) else value) == old


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()


def _feeds(config: Config, key: str, value: Any) -> str:
    """Return ``; for example ...`` with keys that have the same name and value, as the end of a message."""
    name = re.sub(r"^(train|val|test)_", "", key.split(".")[-1])
    found = []

    def walk(node: Any, path: str) -> None:
        for part, inner in _items(node):
            if part == name and (inner == value or name == key.split(".")[-1] == part):
                found.append(f"{path}{part}")
            walk(inner, f"{path}{part}.")

    walk(_acting(config), "")
    return f", such as {', '.join(found[:3])}" if found else ""


def _check_kept(config: Config, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that ``custom_data`` has replaced."""
    if config.get("custom_data") is None:
        return
    for key, value in options.items():
        if is_known(key.split(".")[0]) and not key.startswith("custom_data") and not _is_same(config, key, value):
            raise ConfigError(
                f"`cfg_options` {key}: is set to {_at(config, key)!r} from custom_data; change the keys of custom_data "
                "(root, classes, train_ann, ...), or set custom_data=None"
            )


def parse_options(items: Sequence[str]) -> dict[str, str]:
    """Split ``KEY=VALUE`` strings. `apply_options` converts the values to the types that they replace.

    Raises:
        ConfigError: a string has no ``=`` or an invalid key.
    """
    options = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", key):
            raise ConfigError(f"`cfg_options` must be KEY=VALUE, such as train_cfg.max_iters=100, got {item!r}")
        options[key] = value
    return options


def apply_options(config: Config | dict[str, Any], options: Mapping[str, Any], scope: str | None = None) -> None:
    """Set dotted keys of a config or dict in place. A number in a key is an index into a list.

    Args:
        config: the config.
        options: values by dotted key.
        scope: package in which types without a prefix are searched first; by default ``default_scope`` of the config.

    Raises:
        ConfigError: a key neither exists nor is an argument of the class, or a value has the wrong type.
    """
    scope = scope or config.get("default_scope")
    for key, value in options.items():
        parts = _split(config, key)
        here: Any = config._cfg_dict if isinstance(config, Config) else config
        for depth, part in enumerate(parts[:-1]):
            here = _step(here, part, parts[: depth + 1], key, scope, create=True)
        last = parts[-1]
        if isinstance(here, (list, tuple)):
            old = _step(here, last, parts, key, scope)
        else:
            known = isinstance(here, Mapping) and last in here
            if not known:
                check_key(here, parts, key, scope)
            old = here.get(last)
        new = _value(value, old, key) if isinstance(value, str) else value
        if isinstance(here, tuple):
            raise ConfigError(
                f"`cfg_options` {key}: cannot change a single element of a tuple; set {'.'.join(parts[:-1])}"
            )
        here[int(last) if isinstance(here, list) else last] = new


def _step(here: Any, part: str, path: list[str], key: str, scope: str | None, create: bool = False) -> Any:
    where = ".".join(path[:-1]) or "the config"
    if isinstance(here, (list, tuple)):
        if not part.isdigit() or int(part) >= len(here):
            raise ConfigError(f"`cfg_options` {key}: the index into {where} must be 0 to {len(here) - 1}, got {part!r}")
        return here[int(part)]
    if not isinstance(here, Mapping):
        raise ConfigError(f"`cfg_options` {key}: {where} is {here!r} and has no key {part!r}")
    if part not in here or (here[part] is None and create):
        if not create:
            raise ConfigError(f"`cfg_options` {key}: {where} has no key {part!r}{close_matches(part, here)}")
        if part not in here:
            check_key(here, path, key, scope)
        here[part] = {}
    return here[part]


def _value(text: str, old: Any, key: str) -> Any:
    """Parse a value. Values that replace a string remain strings; ``a,b`` is a list."""
    low = text.strip().lower()
    if low in ("true", "false"):
        return low == "true"
    if low in ("none", "null"):
        return None
    if old is None and re.search(r"(_from|_dir|root|_ann|_img|_mask|_list|_suffix|checkpoint|pretrained|file)$", key):
        return text  # a path, which may contain commas
    try:
        new = ast.literal_eval(text)
        if isinstance(new, tuple) and not text.strip().startswith("("):
            new = list(new)
    except (ValueError, SyntaxError):
        if not isinstance(old, str) and re.fullmatch(r"\[.*\]|\(.*\)", text.strip()):
            items = [_value(t.strip(), None, key) for t in text.strip()[1:-1].split(",") if t.strip()]
            new = items if text.strip().startswith("[") else tuple(items)
        elif not isinstance(old, str) and "," in text:
            new = [_value(t.strip(), None, key) for t in text.split(",") if t.strip()]
        else:
            new = text
    if isinstance(old, str) and not isinstance(new, str):
        return text
    if isinstance(old, (dict, list)) and new is not None and not isinstance(new, (dict, list, tuple)):
        raise ConfigError(f"`cfg_options` {key}={text}: {key} is a group of keys; set one of them: {key}.NAME=VALUE")
    if isinstance(old, (int, float)) and not isinstance(old, bool) and isinstance(new, str):
        raise ConfigError(f"`cfg_options` {key} must be a number (now {old}), got {text!r}")
    if isinstance(old, tuple) and isinstance(new, list):
        return tuple(new)
    return new
