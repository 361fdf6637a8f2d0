"""Export a timm model or a trained model as .pt2 (torch.export) or .onnx, and check the outputs.

Import visionattn before loading a .pt2 file, as it uses the attention kernels; .onnx files contain standard operators
only. For trained models, postprocessing is not included: the outputs are those of the head (for two-stage detectors,
the feature maps of the neck), and the input are pixels in 0..255 in the channel order of the model, usually RGB.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visionattn.cli.source import find_trained, is_trained
from visionattn.errors import ConfigError, require

if TYPE_CHECKING:
    from visionattn.inference.export import Network

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn export``."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="timm model name, such as dinat_mini, or the folder of a training run, a config or a checkpoint",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights file of MODEL or --config")
    parser.add_argument("--features", action="store_true", help="output the feature maps of MODEL in place of logits")
    parser.add_argument("--num-classes", type=int, metavar="N", help="number of classes of MODEL")
    parser.add_argument("--run", metavar="WORK_DIR", help="folder of a training run; uses its best checkpoint")
    parser.add_argument(
        "--config", metavar="FILE", help="config file (default of --checkpoint: the best of work_dirs/<config name>)"
    )
    parser.add_argument("--out", metavar="FILE", help="output file, .pt2 or .onnx (default: <model>.pt2)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width, or one number for both (default: those of the timm model, or of the test images)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size (default: 1)")
    parser.add_argument(
        "--dynamic", nargs="+", default=[], metavar="AXIS", help="dynamic axes: batch, size, or both (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Export a model and return 0."""
    from visionattn.inference.export import export_model

    if args.size and len(args.size) > 2:
        raise ConfigError(f"`size` must be one or two numbers, got {len(args.size)}")
    network, name = _network(args)
    size = (args.size[0], args.size[-1]) if args.size else network.size
    if size is None:
        raise ConfigError(
            "`size` is required, since the config does not resize test images: height and width in pixels"
        )
    out = Path(args.out or f"{name}.pt2")
    done = export_model(network, out, size, args.batch, dynamic=args.dynamic)
    shapes = ", ".join("x".join(map(str, shape)) for shape in done.outputs)
    print(f"image {'x'.join(map(str, done.inputs))} to {shapes}")
    print(f"dynamic: {', '.join(done.dynamic) or 'none'}")
    tried = ", ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"maximum difference from the model: {done.difference:.1e} of the largest output, for {tried}")
    print(f"{done.path}, {done.path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _network(args: argparse.Namespace) -> "tuple[Network, str]":
    """Return the network and the default file name."""
    given = [name for name in ("model", "run", "config") if getattr(args, name) is not None]
    if len(given) > 1 or not (given or args.checkpoint):
        raise ConfigError("exactly one of MODEL, `run` and `config` is required")
    source = getattr(args, given[0]) if given else None
    if args.model is not None and not is_trained(args.model):
        from visionattn.inference.export import timm_network

        return timm_network(args.model, args.checkpoint, args.features, args.num_classes), args.model
    for name in ("features", "num_classes"):
        if getattr(args, name):
            raise ConfigError(f"`{name}` applies to timm models only")
    require("mmengine")
    from visionattn.inference.export import network_of_run

    config, checkpoint = find_trained(source, args.checkpoint)
    return network_of_run(config, checkpoint), Path(config).stem
