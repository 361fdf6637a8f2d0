"""The command line: ``visionattn train``, ``visionattn test``, ...; ``tools/*.py`` call the same functions.

Each command is a module with ``add_arguments(parser)`` and ``run(args)``, which returns the exit status. The module is
imported only when its command is called, to keep ``visionattn --help`` fast.
"""

import argparse
import difflib
import importlib
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from visionattn import __version__
from visionattn.errors import ConfigProblemsError, VisionattnError, require, summary

COMMANDS = {
    "train": "train a model",
    "tune": "train a model repeatedly to find the best values of config keys",
    "test": "evaluate a checkpoint on the test data of a config",
    "infer": "predict on images, videos or point clouds with a trained model",
    "serve": "serve trained models: a page for the browser and a JSON API",
    "configs": "list the configs of the package, or copy one to edit",
    "models": "list the trained models, and the details of one",
    "attention": "draw attention and relevance maps of an image, or measure the heads over a folder",
    "probe": "evaluate frozen backbones on folders of classes",
    "replay": "repeat a training iteration that produced NaN or infinity",
    "export": "export a timm model or a trained model as .pt2 or .onnx",
    "convert-checkpoint": "extract the tensors of a checkpoint without executing code",
    "check": "check a config and its data, without training",
    "browse": "draw training samples after all transforms",
    "doctor": "show versions, devices and the backend of each operator",
    "benchmark": "time models or the backends of an operator, or list the tile shapes of the Triton kernels",
    "simulate": "compute speed-up bounds of neighborhood attention, and search strides and tiles",
    "forge": "create a dataset of image forgeries from photographs",
    "data": "convert and describe your data, create sample data, or download a public dataset",
}


OPENMMLAB = {"train", "tune", "test", "infer", "serve", "replay", "export", "check", "browse"}
"""Commands that use OpenMMLab; `export` only for trained models, and `infer` not for exported ones."""


def uses_openmmlab(command: str, args: argparse.Namespace) -> bool:
    """Return True if a command uses OpenMMLab with these arguments."""
    if command == "infer" and args.onnx is not None:
        return False
    if command == "export" and (args.model or args.named) is not None:
        from visionattn.cli.source import is_trained  # imports PyTorch

        return is_trained(args.model or args.named)
    return command in OPENMMLAB


class Formatter(argparse.HelpFormatter):
    """Keeps the paragraphs of descriptions."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(Formatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """A parser that requires complete flags, and names similar ones in the error for an unknown flag."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        if message.startswith("unrecognized arguments") and (found := re.search(r"--[\w-]+", message)):
            close = difflib.get_close_matches(found[0], self._option_string_actions, n=2)
            message += f"; did you mean {' or '.join(close)}?" if close else ""
        super().error(message)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"visionattn.cli.{command.replace('-', '_')}")


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command."""
    module = _module(command)
    parser = Parser(prog=f"visionattn {command}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    parser.usage = f"{parser.prog} {required_arguments(parser)} [options]".replace("  ", " ")
    return parser


def required_arguments(parser: argparse.ArgumentParser) -> str:
    """Return the positional arguments and the required options of a command in one line, for its usage."""
    words = []
    for action in (*parser._get_positional_actions(), *parser._get_optional_actions()):
        if not action.option_strings or action.required:
            words += [*action.option_strings[:1], values_of(action)]
    return " ".join(words)


def values_of(action: argparse.Action) -> str:
    """Return the values of an argument as its usage shows them, such as ``N [N ...]``; "" if it has none."""
    if action.nargs == 0:
        return ""
    return argparse.HelpFormatter("")._format_args(
        action, action.dest.upper() if action.option_strings else action.dest
    )


def usage() -> str:
    """Return the text of ``visionattn --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {text}" for name, text in COMMANDS.items()]
    options = {
        "--version": "print the version",
        "--install-completion [SHELL]": "complete commands, options and names with the Tab key: bash, zsh or fish",
        "--show-completion SHELL": "print the completion script",
    }
    wide = max(map(len, options))
    lines += ["", *(f"  {name:<{wide}} {text}" for name, text in options.items())]
    return "\n".join(["usage: visionattn COMMAND [arguments]   (visionattn COMMAND --help for each)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 success, 1 failure, 2 invalid arguments, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"visionattn {__version__}")
        return 0
    if argv[0] in ("--install-completion", "--show-completion"):
        return importlib.import_module("visionattn.cli.completion").run(argv)
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = _module(argv[0])
    parser = build_parser(argv[0])
    args = parser.parse_args(argv[1:])
    show = warnings.showwarning
    warnings.showwarning = lambda message, category, *where: (
        print(f"warning: {with_flags(str(message), parser)}", file=sys.stderr)
        if category is UserWarning
        else show(message, category, *where)
    )
    try:
        if uses_openmmlab(argv[0], args):
            require("mmengine")
            importlib.import_module("visionattn.engine.compat").install()
        return command.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, ConfigProblemsError):
            print(f"error: {with_flags(str(error), parser)}", file=sys.stderr)
            return 1
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{error.filename}: {error.strerror}"  # such as an output folder that cannot be written
        elif not isinstance(error, VisionattnError):
            short = summary(error)
            more = "use --debug for the traceback" if short == text else f"full message: {_write(error)}"
            text = f"unexpected {type(error).__name__}: {short} ({more})"
        print(f"error: {with_flags(text, parser)}", file=sys.stderr)
        return 1
    finally:
        warnings.showwarning = show


def _write(error: Exception) -> str:
    """Write the traceback of an error whose message is too long for a line to a file, and return its path."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="visionattn-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    return file.name


def with_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """Replace the argument names of the library by command-line flags: `` `score_thr` `` becomes ``--score-thr``."""
    flags = {
        name: option
        for action in parser._actions
        for option in action.option_strings
        for name in (action.dest, option.lstrip("-").replace("-", "_"))
    }
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)
