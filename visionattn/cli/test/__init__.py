"""Evaluate a checkpoint on the test data of a config, and write the metrics and the predictions."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.cli.source import find_trained
from visionattn.errors import ConfigError
from visionattn.zoo import given_file, known_names

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__test__ = False  # keeps pytest from collecting this module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn test``."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="folder of a training run, config, or checkpoint of a run"
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="weights file (default: the best of the run, or of work_dirs/<config name>)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="trained model, see visionattn models; the data is that of its config"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="output folder (default: test/ in the folder of the checkpoint, outputs/test/NAME for --model)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html with an analysis of the errors, and the best score thresholds",
    )
    parser.add_argument(
        "--robustness",
        nargs="*",
        metavar="KIND",
        help="evaluate on degraded images and draw curves; jpeg, blur, noise, resize (default: all)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs, or of processes on a CPU, among which the images are divided (default: 1)",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="compute in half precision, except for boxes and maps: float16 on CUDA, bfloat16 on a CPU",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, such as test_dataloader.batch_size=4",
    )
    other = parser.add_argument_group("other weights")
    other.add_argument("--weights", metavar="FILE", help="file of the weights of --model, in place of a download")
    other.add_argument(
        "--onnx",
        metavar="FILE",
        help="evaluate a file of visionattn export with ONNX Runtime, on the data of CONFIG or --model, or of the "
        "config that the file was exported from, if it is one of the package",
    )
    other.add_argument(
        "--provider", nargs="+", metavar="P", help="execution providers of --onnx: cpu, cuda, tensorrt, openvino, ..."
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate a checkpoint and return 0."""
    from visionattn.errors import require

    require("mmengine")
    from visionattn.engine.train.launch import launch
    from visionattn.engine.train.testing import test
    from visionattn.inference.analysis import Recorder

    if (args.model is not None and args.config is not None) or args.model is args.config is args.onnx:
        raise ConfigError("exactly one of CONFIG and `model` is required")
    if args.weights is not None and args.model is None:
        raise ConfigError("`weights` requires `model`; give the weights of CONFIG as CHECKPOINT")
    if args.onnx is not None:
        return _run_onnx(args)
    if args.provider is not None:
        raise ConfigError("`provider` applies to `onnx` only")
    source = args.model or args.config
    config_file, checkpoint = find_trained(source, args.weights or args.checkpoint, args.cfg_options)
    out = Path("outputs", "test", source) if source in known_names() else Path(checkpoint).parent / "test"
    out = Path(args.out) if args.out else out
    options = {"config": config_file, "cfg_options": args.cfg_options, "checkpoint": checkpoint, "out": out}
    if args.report and args.robustness is not None:
        raise ConfigError("`report` cannot be combined with `robustness`; run the command twice")
    if args.report and max(args.devices, int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError("`report` requires one process; run it without `devices`")
    if args.robustness is not None:
        if args.amp:
            raise ConfigError("`amp` and `robustness` cannot be combined")
        from visionattn.cli.test.robustness import run_ladders

        launch({**options, "kinds": args.robustness}, args.devices, run_ladders)
        return 0
    recorder = Recorder() if args.report else None
    with given_file(args.model, args.weights):
        result = launch({**options, "observer": recorder, "amp": args.amp}, args.devices, test)
    if result is not None:  # the first process under torchrun
        _print_result(result, checkpoint, recorder.write(out, result) if recorder else [])
    return 0


def _run_onnx(args: argparse.Namespace) -> int:
    """Evaluate an exported file and return 0."""
    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.testing import test
    from visionattn.inference.analysis import Recorder
    from visionattn.inference.onnx.testing import OnnxProgram, config_of

    if args.amp:
        raise ConfigError("`amp` does not apply to `onnx`; visionattn export --half writes a file of float16")
    if args.devices != 1:
        raise ConfigError("`devices` does not apply to `onnx`, which is tested in one process")
    for name in ("checkpoint", "weights", "robustness"):
        if getattr(args, name) is not None:
            raise ConfigError(f"`{name}` does not apply to `onnx`, which is a whole model")
    program = OnnxProgram(args.onnx, args.provider)
    source = args.model or args.config
    config = load_config(find_trained(source)[0] if source else config_of(program), args.cfg_options)
    out = Path(args.out) if args.out else Path("outputs", "test", program.path.stem)
    recorder = Recorder() if args.report else None
    result = test(config, program, out, recorder)
    _print_result(result, program.path, recorder.write(out, result) if recorder else [])
    return 0


def _print_result(result: "TestResult", checkpoint: str | Path, more: Sequence[Path]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in result.weights.lines() if result.weights else ():
        console.print(line, markup=False)
    console.print(f"{checkpoint} on {result.images} images, {result.seconds:.1f} s")
    console.print(_metrics_table(result.metrics))
    for kind, rows in result.per_class.items():
        console.print(_class_table(kind, rows))
    for file in [*result.files, *more]:
        relative = os.path.relpath(file)
        console.print(f"written: {file if relative.startswith('..') else relative}")


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
