"""List everything that is wrong with a config: names, arguments, paths, channels, classes. Trains nothing.

The exit status is 0 for a sound config and 1 for one with problems, each on its own line with its dotted path.
``train``, ``test`` and ``infer`` make the same check before they touch data. Of a sound config the data is read too:
annotations, image files, and every index mask.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change keys of the config before the check, such as train_dataloader.batch_size=4",
    )
    parser.add_argument("--model-only", action="store_true", help="leave the data out, such as before it is there")


def run(args: argparse.Namespace) -> int:
    """Check; returns 0, or raises an error with every problem."""
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
    print(f"{args.config}: nothing wrong was found")
    return 0
