"""Export a timm model or a trained model as .pt2 (torch.export) or .onnx, and check the outputs.

Trained models are exported with their final outputs, such as boxes in pixels or maps of classes: normalization,
padding, decoding and non-maximum suppression are part of the program. The input is an image in RGB with values in
0..255, at the size of the test images. Thresholds are inputs with default values. Run an .onnx file with any runtime,
or with visionattn infer --onnx FILE. Import visionattn before loading a .pt2 file, as it uses the operators of this
package; .onnx files contain standard operators only.

--half and --int8 write .onnx files of reduced precision, and print size, time per image and accuracy on the validation
data of the config beside those of the float32 file.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.cli.source import find_trained, is_trained
from visionattn.errors import ConfigError, VisionattnError, require
from visionattn.zoo import model_names

if TYPE_CHECKING:
    from visionattn.inference.export import Network
    from visionattn.inference.onnx.reduced import Comparison

__all__ = ["add_arguments", "run"]

CALIBRATION = 32
"""Maximum number of calibration images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn export``."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="timm model name, such as dinat_mini, or the name of a trained model (see visionattn models), the folder "
        "of a training run, a config or a checkpoint",
    )
    parser.add_argument("--out", metavar="FILE", help="output file, .pt2 or .onnx (default: <model>.pt2)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width, or one number for both (default: those of the timm model, or of the test images)",
    )
    parser.add_argument(
        "--dynamic", nargs="+", default=[], metavar="AXIS", help="dynamic axes: batch, size, or both (default: none)"
    )
    source = parser.add_argument_group("model", "in place of MODEL, or for it")
    source.add_argument("--model", dest="named", metavar="MODEL", help="the same as MODEL")
    source.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; uses its best checkpoint")
    source.add_argument(
        "--config", metavar="FILE", help="config file (default of --checkpoint: the best of work_dirs/<config name>)"
    )
    source.add_argument(
        "--weights", "--checkpoint", dest="checkpoint", metavar="FILE", help="weights file of MODEL or --config"
    )
    source.add_argument("--features", action="store_true", help="output the feature maps of MODEL in place of logits")
    source.add_argument("--num-classes", type=int, metavar="N", help="number of classes of MODEL")
    program = parser.add_argument_group("inputs and outputs of the program")
    program.add_argument("--batch", type=int, default=1, metavar="N", help="batch size (default: 1)")
    program.add_argument("--uint8", action="store_true", help="the image is uint8 (default: float32)")
    program.add_argument(
        "--resize",
        action="store_true",
        help="resize images in the program as for testing: it takes images of any size, and its outputs refer to them",
    )
    program.add_argument("--max-detections", type=int, metavar="K", help="rows of boxes (default: that of the config)")
    program.add_argument(
        "--paste-masks", action="store_true", help="instance masks at the size of the image (default: of the boxes)"
    )
    program.add_argument(
        "--opset", type=int, metavar="N", help="version of the ONNX operators (default: 18, the lowest)"
    )
    program.add_argument("--license", metavar="TEXT", help="license of the weights, for the metadata of the file")
    reduced = parser.add_argument_group("reduced precision", "of trained models as .onnx; decoding remains in float32")
    which = reduced.add_mutually_exclusive_group()
    which.add_argument("--half", action="store_true", help="compute in float16")
    which.add_argument("--int8", action="store_true", help="compute in 8-bit integers; requires --calibrate")
    reduced.add_argument(
        "--calibrate", nargs="+", metavar="IMAGES",
        help="images, folders or globs in quotes, from which --int8 takes the ranges of values: images like "
        f"those of the application, of which {CALIBRATION} are used",
    )  # fmt: skip
    reduced.add_argument("--onnx", metavar="FILE", help="reduce this file of visionattn export in place of MODEL")
    reduced.add_argument(
        "--max-drop", type=float, metavar="X",
        help="write no file that loses more than X of AP, mIoU or the first metric of visionattn test; 0.01 is a point",
    )  # fmt: skip
    reduced.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="override config keys, such as custom_data.root=FOLDER for the validation data",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Export a model and return 0."""
    from visionattn.inference.export import SUFFIXES
    from visionattn.inference.export.onnx_file import check_opset, require_onnx

    if args.size and len(args.size) > 2:
        raise ConfigError(f"`size` must be one or two numbers, got {len(args.size)}")
    if args.out and Path(args.out).suffix not in SUFFIXES:
        raise ConfigError(f"`out` must end in .pt2 or .onnx, got {args.out}")
    if args.out and args.out.endswith(".onnx"):
        require_onnx()
        check_opset(args.opset)
    if args.half or args.int8:
        _reduce(args)
        return 0
    for name in ("calibrate", "onnx", "max_drop", "cfg_options"):
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"`{name}` requires `half` or `int8`")
    _write(args, args.out)
    return 0


def _reduce(args: argparse.Namespace) -> None:
    """Write a file of reduced precision, and print the comparison with the float32 file."""
    out = Path(args.out or "")
    if out.suffix != ".onnx":
        raise ConfigError("`half` and `int8` require `out`, a file that ends in .onnx")
    if args.int8 != bool(args.calibrate):
        raise ConfigError("`int8` requires `calibrate`" if args.int8 else "`calibrate` applies to `int8` only")
    if args.max_drop is not None and not 0 <= args.max_drop < 1:
        raise ConfigError(f"`max_drop` must be in [0, 1), got {args.max_drop}; 0.01 is one point")
    if args.onnx is not None and (args.model or args.named or args.run or args.checkpoint):
        raise ConfigError("`onnx` is a whole model; of the others, only `config` applies, for its validation data")
    require("onnxruntime", "onnx")
    images = _calibration(args.calibrate) if args.int8 else None
    config = _validation(args)
    import torch

    from visionattn.inference.onnx.reduced import reduce_file

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        if args.onnx is None:
            _write(args, Path(folder, f"{out.stem}-float32.onnx"))
        source = args.onnx or next(Path(folder).iterdir())
        for found in reduce_file(source, out, images, config, args.max_drop, threads):
            print(_comparison(found, threads), flush=True)
    print(f"written: {out}")


def _calibration(patterns: Sequence[str]) -> list[Any]:
    """Return up to `CALIBRATION` images, evenly spaced in the sorted list of the files."""
    from visionattn.io.images import MAX_PIXELS, read_image
    from visionattn.io.inputs import find_inputs

    files = [source.path for source in find_inputs(patterns) if not source.is_video]
    count = min(len(files), CALIBRATION)
    return [read_image(files[index * len(files) // count], MAX_PIXELS) for index in range(count)]


def _validation(args: argparse.Namespace) -> Any:
    """Return the config with the validation data; None if there is no such data, which is an error for `max_drop`."""
    require("mmengine")
    from visionattn.engine.config.data_checks import check_data
    from visionattn.engine.config.load import load_config
    from visionattn.inference.onnx.testing import OnnxProgram, config_of

    if args.onnx is not None:
        source = args.config or config_of(OnnxProgram(args.onnx))
    else:
        name = args.model or args.named
        if name is not None and not is_trained(name):
            raise ConfigError("`half` and `int8` apply to trained models only")
        source = find_trained(name or args.run or args.config, args.checkpoint)[0]
    try:
        config = load_config(source, args.cfg_options)
        check_data(config, ("test",))
    except VisionattnError as error:
        if args.max_drop is not None or args.cfg_options:
            raise
        print(f"accuracy is not measured: {error}")
        return None
    return config


def _comparison(found: "Comparison", threads: int) -> str:
    """Return the text about a file of reduced precision."""
    lines = [found.precision + (f", {found.in_float} of {found.layers} layers in float32" if found.in_float else "")]
    size, seconds = found.sizes, found.seconds
    lines.append(f"  size: {size[1] / 2**20:.1f} MiB instead of {size[0] / 2**20:.1f} MiB")
    lines.append(
        f"  time: {seconds[1] * 1e3:.0f} ms per image instead of {seconds[0] * 1e3:.0f} ms, {threads} threads, "
        "ONNX Runtime on the CPU"
    )
    if found.metrics is not None:
        before, after = found.metrics
        pairs = [f"{name} {after[name]:.4f} instead of {before[name]:.4f}" for name in found.names]
        lines.append(f"  accuracy: {', '.join(pairs)}")
    return "\n".join(lines)


def _write(args: argparse.Namespace, out: str | Path | None) -> None:
    """Export the model, and print shapes, differences and size."""
    from visionattn.inference.export import export_model

    network, name = _network(args)
    size = (args.size[0], args.size[-1]) if args.size else network.size
    if size is None:
        raise ConfigError(
            "`size` is required, since the config does not resize test images: height and width in pixels"
        )
    done = export_model(network, Path(out or f"{name}.pt2"), size, args.batch, dynamic=args.dynamic, opset=args.opset)
    shapes = ["x".join(map(str, shape)) for shape in done.outputs]
    if network.names:
        shapes = [f"{name} {shape}" for name, shape in zip(done.names, shapes, strict=True)]
    print(f"image {'x'.join(map(str, done.inputs))} to {', '.join(shapes)}")
    print(f"dynamic: {', '.join(done.dynamic) or 'none'}")
    tried = ", ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"maximum difference from the model: {done.difference:.1e} for {tried}")
    print(f"{done.path}, {done.path.stat().st_size / 2**20:.1f} MiB")


def _network(args: argparse.Namespace) -> "tuple[Network, str]":
    """Return the network and the default file name."""
    if args.named is not None:
        if args.model is not None:
            raise ConfigError("exactly one of MODEL, `run` and `config` is required")
        args.model = args.named
    given = [name for name in ("model", "run", "config") if getattr(args, name) is not None]
    if len(given) > 1 or not (given or args.checkpoint):
        raise ConfigError("exactly one of MODEL, `run` and `config` is required")
    source = getattr(args, given[0]) if given else None
    if args.model is not None and not is_trained(args.model):
        for name in ("uint8", "paste_masks", "resize", "max_detections"):
            if getattr(args, name):
                raise ConfigError(f"`{name}` applies to trained models only")
        from visionattn.inference.export import timm_network

        return timm_network(args.model, args.checkpoint, args.features, args.num_classes), args.model
    for name in ("features", "num_classes"):
        if getattr(args, name):
            raise ConfigError(f"`{name}` applies to timm models only")
    require("mmengine")
    from visionattn.inference.export import network_of_run
    from visionattn.inference.options import ExportOptions

    config, checkpoint = find_trained(source, args.checkpoint)
    license = args.license or ("Apache-2.0" if source in model_names() else None)  # of the models of the package
    options = ExportOptions(args.paste_masks, args.max_detections, args.uint8, license, args.resize)
    return network_of_run(config, checkpoint, options), Path(config).stem
