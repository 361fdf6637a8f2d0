"""List the configs of the package, or copy one to edit. The commands take their names: visionattn train NAME."""

import argparse
import json
import os
import shlex
from dataclasses import asdict
from itertools import groupby

from visionattn.errors import ConfigError
from visionattn.io.configs import PackageConfig, copy_config, get_config, list_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn configs``."""
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="a name, a pattern such as 'mask-rcnn_*coco', or a part of the name, job, model, backbone or data",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print the list as JSON, with the paths of the files")
    group.add_argument(
        "--copy",
        nargs="?",
        const=".",
        metavar="DEST",
        help="write a copy of the config of this name to DEST, a folder or a .py file (default: the current folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or write the copy, and return 0."""
    if args.copy is not None:
        if args.pattern is None:
            raise ConfigError("`copy` requires the name of a config; `visionattn configs` lists them")
        config, file = get_config(args.pattern), copy_config(args.pattern, args.copy)
        print(f"wrote {file}\nedit it, then: {_train(config, os.path.relpath(file))}")
        return 0
    configs = list_configs(args.pattern)
    if args.json:
        print(json.dumps([{**asdict(config), "path": str(config.path)} for config in configs], indent=1))
        return 0
    width = max(len(config.name) for config in configs)
    for job, group in groupby(configs, key=lambda config: config.job):
        print(f"{job}:")
        for config in group:
            print(f"  {config.name:<{width}}  {_describe(config)}")
    one = configs[0].name if len(configs) == 1 else "NAME"
    train = _train(configs[0], one) if len(configs) == 1 else "visionattn train NAME"
    print(f"\ntrain: {train}\ncopy one to edit: visionattn configs {one} --copy")
    return 0


def _describe(config: PackageConfig) -> str:
    """Return the model, its backbone, the data and the result in one line."""
    result = f"; {config.ours}" if config.ours else f"; published: {config.published}" if config.published else ""
    return f"{config.model}, {config.backbone}, {config.data}{result}"


def _train(config: PackageConfig, source: str) -> str:
    """Return the command that trains a config, given by its name or file."""
    options = ["--cfg-options", *config.options] if config.options else []
    return f"visionattn train {shlex.join([source, *options])}"
