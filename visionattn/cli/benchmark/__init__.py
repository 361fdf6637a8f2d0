"""Time the backends of an attention operator on one problem, or whole models.

For an operator, the outputs of the backends are first checked to agree; --dry-run lists the tile shapes of the Triton
kernels, default first, without running them, and needs no GPU. Lists take one value for all axes, or one per axis.

For models (--model), images per second and peak memory are measured, of all models and modes in turn: inference, and
with --train a training step.
"""

import argparse
from types import ModuleType

from visionattn.cli.benchmark import models, operators
from visionattn.errors import ConfigError

__all__ = ["add_arguments", "run"]

TYPES = ("fp32", "bf16", "fp16", "fp64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn benchmark``."""
    parser.add_argument("--batch", type=int, default=1, help="batch size (default: 1)")
    parser.add_argument("--dtype", choices=TYPES, default="fp32", help="default: fp32")
    parser.add_argument("--device", help="device (default: cuda if available, else cpu)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds; each times everything in turn (default: 15)")
    operators.add_arguments(parser.add_argument_group("operators"))
    models.add_arguments(parser.add_argument_group("models"))


def run(args: argparse.Namespace) -> int:
    """Check and time, and return 0."""
    if (args.op is None) == (args.model is None):
        raise ConfigError("exactly one of an operator (na1d, na2d, na3d) and `model` is required")
    for name, least in (("batch", 1), ("rounds", 2)):
        if getattr(args, name) < least:
            raise ConfigError(f"`{name}` must be at least {least}, got {getattr(args, name)}")
    kind, other = (operators, models) if args.model is None else (models, operators)
    if unused := _given(other, args):
        raise ConfigError(f"`{unused[0]}` is an option of {'models' if other is models else 'operators'}")
    return kind.run(args)


def _given(part: ModuleType, args: argparse.Namespace) -> list[str]:
    """Return the names of the options of `part` that differ from their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    part.add_arguments(parser)
    return [name for name, default in vars(parser.parse_args([])).items() if getattr(args, name) != default]
