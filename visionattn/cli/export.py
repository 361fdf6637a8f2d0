"""Write a timm model, or the network of a training run, as .pt2 (torch.export) or .onnx, checked against the model.

A .pt2 keeps the attention kernels: import visionattn before loading it. An .onnx has standard operators only. Of a
run, boxes and maps are not made: the file gives what the head says (of two-stage detectors the maps of the neck) for
pixels of 0..255 in the order that the model takes, which is RGB unless its config says otherwise.
"""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError

__all__ = ["add_arguments", "run"]

TIMM_SIZE = 224


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn export``."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a timm model, such as dinat_mini")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights of MODEL, or with --config of a whole model")
    parser.add_argument("--features", action="store_true", help="give the maps of MODEL's levels, not the classifier")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes of MODEL's classifier")
    parser.add_argument("--run", metavar="WORK_DIR", help="in place of MODEL, the folder that training wrote")
    parser.add_argument("--config", metavar="FILE", help="in place of MODEL, a config file, with --checkpoint")
    parser.add_argument("--out", metavar="FILE", help="file to write, .pt2 or .onnx (default: <model>.pt2)")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="N", help="height and width, or one for both (default: the model's)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument(
        "--dynamic", nargs="+", default=[], metavar="AXIS", help="what may vary: batch, size, or both (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Export and return 0."""
    from visionattn.inference.export import export_model

    network, name, size = _network(args)
    if args.size:
        if len(args.size) > 2:
            raise ConfigError(f"--size takes one or two numbers, got {len(args.size)}")
        size = (args.size[0], args.size[-1])
    out = Path(args.out or f"{name}.pt2")
    done = export_model(network, out, size, args.batch, dynamic=args.dynamic)
    shapes = ", ".join("x".join(map(str, shape)) for shape in done.outputs)
    print(f"image {'x'.join(map(str, done.inputs))} to {shapes}")
    print(f"any {' and '.join(done.dynamic)}" if done.dynamic else "this shape only")
    tried = ", ".join("x".join(map(str, shape)) for shape in done.checked)
    print(f"differs from the model by {done.difference:.1e} of its largest number, on {tried}")
    print(f"{done.path}, {done.path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _network(args: argparse.Namespace):
    """The network, a name for its file, and the size of images it is made for."""
    given = [name for name in ("model", "run", "config") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError("name one model: MODEL of timm, or --run WORK_DIR, or --config FILE and --checkpoint FILE")
    if args.model is not None:
        from visionattn.inference.export import timm_network

        network = timm_network(args.model, args.checkpoint, args.features, args.num_classes)
        inner = getattr(network.model, "model", network.model)
        size = (getattr(inner, "pretrained_cfg", None) or {}).get("input_size", (3, TIMM_SIZE, TIMM_SIZE))
        return network, args.model, tuple(size[1:])
    for name in ("features", "num_classes"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for a MODEL of timm; leave it out")
    from visionattn.errors import require

    require("mmengine")
    from visionattn.engine.model import find_run
    from visionattn.inference.export import network_of_run

    if args.run is not None:
        if args.checkpoint is not None:
            raise ConfigError("--run names a checkpoint itself; leave out --checkpoint, or --run")
        config, checkpoint = find_run(args.run)
    else:
        if args.checkpoint is None:
            raise ConfigError("--config needs --checkpoint beside it")
        config, checkpoint = Path(args.config), Path(args.checkpoint)
    if not args.size:
        raise ConfigError("--size is needed for the model of a run: height and width of its images")
    return network_of_run(config, checkpoint), Path(config).stem, None
