"""The commands: ``visionattn train|test|infer|...``; ``tools/*.py`` are doors to the same functions.

Each command is one module with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int``, the exit
status. A module is imported only when its command is called, so ``visionattn --help`` stays quick.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence

from visionattn import __version__
from visionattn.errors import ConfigProblemsError, VisionattnError, require

COMMANDS = {
    "train": "train a model from a config",
    "test": "measure a checkpoint on a config's test data",
    "infer": "run a trained model on images, folders, globs or videos",
    "attention": "draw what the attention of a backbone looks at in a picture",
    "replay": "run the iteration again at which a training met NaN or infinity",
    "export": "write a timm model, or the network of a run, as .pt2 or .onnx",
    "check": "list everything that is wrong with a config, without training",
    "browse": "draw what the data pipeline of a config feeds the model",
    "doctor": "show versions, devices, and which implementation of each operator runs here",
    "benchmark": "time the attention backends that can run here, or list the tiles of the Triton kernels",
    "simulate": "bound the speed-up of neighborhood attention, and find strides and tiles",
    "forge": "make a dataset of local forgeries from a folder of photographs",
    "data": "make the sample data, or fetch a public dataset",
}


OPENMMLAB = {"train", "test", "infer", "replay", "export", "check", "browse"}
"""Commands that use OpenMMLab; `export` only without a timm model."""


def uses_openmmlab(command: str, args: argparse.Namespace) -> bool:
    """Return True if a command uses OpenMMLab with these arguments."""
    return command in OPENMMLAB and not (command == "export" and args.model is not None)


def build_parser(command: str) -> argparse.ArgumentParser:
    """The argument parser of one command."""
    module = importlib.import_module(f"visionattn.cli.{command}")
    parser = argparse.ArgumentParser(prog=f"visionattn {command}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback when something fails")
    return parser


def usage() -> str:
    """The text of ``visionattn --help``."""
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: visionattn COMMAND [arguments]   (visionattn COMMAND --help for each)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"visionattn {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: there is no command {argv[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"visionattn.cli.{argv[0]}")
    parser = build_parser(argv[0])
    args = parser.parse_args(argv[1:])
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
            print(f"error: {error}", file=sys.stderr)
            return 1
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, VisionattnError):
            text = f"unexpected {type(error).__name__}: {text} (run again with --debug for the traceback)"
        print(f"error: {with_flags(text, parser)}", file=sys.stderr)
        return 1


def with_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """Replace the argument names of the library by command-line flags: `` `score_thr` `` becomes ``--score-thr``."""
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)
