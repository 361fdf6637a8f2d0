"""What can be completed: the arguments of every command, with their values."""

import argparse
from dataclasses import dataclass
from functools import cache

from visionattn.cli import COMMANDS, build_parser
from visionattn.io.configs import list_configs

__all__ = ["MANY", "Argument", "all_arguments"]

MANY = 1000
"""Number of values of an argument that accepts any number of them."""

FOLDERS = ("DEST", "DIR", "FOLDER", "WORK_DIR")
FILES = ("CHECKPOINT", "CONFIG", "DUMP", "FILE", "IMAGE", "IMAGES", "INPUT", "MODEL", "NAME|FILE", "PATH")
"""Names of values that are folders, and files or folders."""

# Values that are not the only ones, so that they are no `choices` of the parser, by the destination of the argument.
WORDS = {
    "device": ("cpu", "cuda"),
    "dynamic": ("batch", "size"),
    "freeze": ("all",),
    "provider": ("cpu", "cuda", "tensorrt", "openvino"),
    "robustness": ("jpeg", "blur", "noise", "resize"),
    "score_thr": ("best",),
    "task": ("detection", "instance", "semantic", "localization"),
    "tile": ("auto",),
}


@dataclass(frozen=True)
class Argument:
    """An option or a positional argument.

    Attributes:
        options: its names, such as ``("--out",)``; none for a positional argument.
        help: one line.
        metavar: name of its value.
        least: minimum number of values.
        most: maximum number of values, or `MANY`.
        words: values to choose from.
        paths: ``"files"`` if files and folders are completed, ``"folders"``, or "".
    """

    options: tuple[str, ...]
    help: str
    metavar: str
    least: int
    most: int
    words: tuple[str, ...]
    paths: str


def all_arguments() -> dict[str, list[Argument]]:
    """Return the arguments of each command; those of commands whose dependencies are not installed are left out."""
    found = {}
    for command in COMMANDS:
        try:
            parser = build_parser(command)
        except ImportError:
            found[command] = []
            continue
        found[command] = [_argument(command, parser, action) for action in parser._actions]
    return found


def _argument(command: str, parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    counts = {None: (1, 1), "?": (0, 1), "*": (0, MANY), "+": (1, MANY)}
    least, most = (action.nargs, action.nargs) if isinstance(action.nargs, int) else counts[action.nargs]
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    paths = "folders" if metavar in FOLDERS else "files" if metavar in FILES else ""
    words = tuple(map(str, action.choices or ())) or _words(command, action.dest, metavar)
    options = tuple(action.option_strings)
    return Argument(options, " ".join(text.split()), metavar, least, most, words, "" if action.choices else paths)


def _words(command: str, dest: str, metavar: str) -> tuple[str, ...]:
    """Return names of models and configs, or values of `WORDS`."""
    if metavar == "CONFIG" or (command, dest) == ("configs", "pattern"):
        return tuple(config.name for config in list_configs())
    if dest == "start_from" or (command in ("infer", "serve", "test") and dest == "model"):
        return trained()
    if (command in ("probe", "train")) and dest == "model":
        return backbones()
    if dest in ("model", "named") or (command, dest) == ("models", "pattern"):
        return (*trained(), *backbones())
    return WORDS.get(dest, ())


@cache
def trained() -> tuple[str, ...]:
    """Return the names of the trained models."""
    from visionattn.zoo import known_names

    return tuple(known_names())


@cache
def backbones() -> tuple[str, ...]:
    """Return the names of the backbones of this package, without tags."""
    from visionattn.zoo.backbones import all_backbones

    return tuple(dict.fromkeys(name.split(".")[0] for name in all_backbones()))
