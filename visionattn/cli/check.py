"""Check a config without training: types, arguments, paths, channels and classes, then the data.

Each problem is printed on one line with its config key; the exit status is then 1. train, test and infer run the same
check of the config. If the config is valid, annotations, image files and all index masks are read.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn check``."""
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, such as train_dataloader.batch_size=4",
    )
    parser.add_argument("--model-only", action="store_true", help="do not check the data")


def run(args: argparse.Namespace) -> int:
    """Check a config and return 0.

    Raises:
        ConfigProblemsError: the config has problems.
        DataError: the data has a problem.
    """
    from visionattn.errors import require

    require("mmengine")
    from visionattn.engine.config.checks import check_config
    from visionattn.engine.config.data_checks import check_data
    from visionattn.engine.config.load import load_config
    from visionattn.engine.config.model_checks import build_on_meta

    config = load_config(args.config, args.cfg_options, resolve_data=not args.model_only)
    check_config(config, () if args.model_only else ("train", "val", "test"))
    build_on_meta(config, args.config)
    for line in [] if args.model_only else check_data(config, ("train", "val", "test")):
        print(line)
    print(f"{args.config}: no problems found")
    return 0
