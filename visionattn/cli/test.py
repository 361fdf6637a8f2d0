"""Evaluate a checkpoint on the test data of a config, and write the metrics and the predictions."""

import argparse
import os
from pathlib import Path
from typing import Any

from visionattn.cli.source import find_trained

__test__ = False  # keeps pytest from collecting this module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn test``."""
    parser.add_argument("config", metavar="CONFIG", help="folder of a training run, config, or checkpoint of a run")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="weights file (default: the best of the run, or of work_dirs/<config name>)",
    )
    parser.add_argument("--out", metavar="DIR", help="output folder (default: test/ in the folder of the checkpoint)")
    parser.add_argument(
        "--robustness",
        nargs="*",
        metavar="KIND",
        help="evaluate on degraded images and draw curves; jpeg, blur, noise, resize (default: all)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, such as test_dataloader.batch_size=4",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate a checkpoint and return 0."""
    from visionattn.errors import require

    require("mmengine")
    from rich.console import Console

    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.testing import test

    config_file, checkpoint = find_trained(args.config, args.checkpoint, args.cfg_options)
    config = load_config(config_file, args.cfg_options)
    out = Path(args.out) if args.out else Path(checkpoint).parent / "test"
    if args.robustness is not None:
        from visionattn.cli.robustness import run_ladders

        return run_ladders(config, checkpoint, out, args.robustness)
    result = test(config, checkpoint, out)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{checkpoint} on {result.images} images, {result.seconds:.1f} s")
    console.print(_metrics_table(result.metrics))
    for kind, rows in result.per_class.items():
        console.print(_class_table(kind, rows))
    for file in result.files:
        relative = os.path.relpath(file)
        console.print(f"written: {file if relative.startswith('..') else relative}")
    return 0


def _number(value: float, percent: bool = False) -> str:
    if value < 0:
        return "-"
    return f"{value:.3f}" if value <= 1 and not percent else f"{value:.2f}"


def _metrics_table(metrics: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table("metric", "value")
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        table.add_row(name, _number(value))
    return table


def _class_table(kind: str, rows: dict[str, dict[str, float]]) -> Any:
    from rich.table import Table

    columns = list(next(iter(rows.values()), {}))
    titles = {"bbox": "boxes", "segm": "masks", "semantic": "pixels, in percent", "panoptic": "segments"}
    table = Table("class", *columns, title=titles.get(kind, kind), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    percent = any(value > 1 for row in rows.values() for value in row.values())
    for name, row in rows.items():
        table.add_row(name, *(_number(row[column], percent) for column in columns))
    return table
