"""Command-line arguments for large numbers of files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from visionattn.errors import ConfigError
from visionattn.inference.bulk.inputs import TAR_SUFFIXES, Shard
from visionattn.inference.bulk.parts import FORMATS
from visionattn.inference.bulk.run import BulkOptions
from visionattn.inference.file_run import VideoOptions

__all__ = ["add_arguments", "bulk_options"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to ``visionattn infer``."""
    group = parser.add_argument_group("large numbers of files", "with --records jsonl or parquet, also .tar archives")
    group.add_argument(
        "--records", choices=("json", *FORMATS),
        help="json: one predictions.json, overlays and a report (default); jsonl or parquet: files of --part-size "
        "records, without overlays unless --overlays is given",
    )  # fmt: skip
    group.add_argument("--part-size", type=int, metavar="N", help="records in one file (default: 1000)")
    group.add_argument(
        "--shard", metavar="I/N", help="predict only part I of N of the inputs, such as 2/8 (implies --records jsonl)"
    )
    group.add_argument(
        "--skip-done",
        action="store_true",
        help="continue a run: leave out inputs that --out has records of, and retry those that failed (implies "
        "--records jsonl)",
    )
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--overlays", action="store_true", default=None, help="draw overlays whatever --records is")
    choice.add_argument("--no-overlays", dest="overlays", action="store_false", help="draw no overlays and no report")


def bulk_options(
    args: argparse.Namespace, inputs: Sequence[str | Path], video: VideoOptions | None = None
) -> BulkOptions | None:
    """Return the options, or None for a single predictions file.

    Raises:
        ConfigError: options contradict each other, or one is out of range.
    """
    special = {"shard": args.shard is not None, "skip_done": args.skip_done, "part_size": args.part_size is not None}
    given = [name for name, used in special.items() if used]
    if args.records == "json" and given:
        raise ConfigError(f"`{given[0]}` requires `records` jsonl or parquet")
    if args.records == "json" or (args.records is None and not given):
        if archives := [str(item) for item in inputs if str(item).lower().endswith(TAR_SUFFIXES)]:
            raise ConfigError(f"`records` jsonl or parquet is required for tar archives ({archives[0]})")
        return None
    if args.skip_done and args.out is None:
        raise ConfigError("`skip_done` requires `out`, the folder of the results so far")
    return BulkOptions(
        format=args.records or "jsonl",
        shard=Shard.of_process() if args.shard is None else Shard.parse(args.shard),
        skip_done=args.skip_done,
        overlays=bool(args.overlays),
        video=video or VideoOptions(),
        part_size=1000 if args.part_size is None else args.part_size,
    )
