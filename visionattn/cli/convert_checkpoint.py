"""Extract the tensors and plain metadata of a checkpoint, without executing code from it.

Reads .pth files of PyTorch and .pkl files of detectron2 whose metadata contain objects of NumPy, mmengine and others.
Objects that are not plain values are dropped and listed.
"""

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn convert-checkpoint``."""
    parser.add_argument("file", metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=".safetensors for weights and metadata, or .pth, which also keeps the optimizer and other entries "
        "(default: FILE with the suffix .safetensors)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert the checkpoint and return 0."""
    from visionattn.io.console import count_of
    from visionattn.io.convert import convert_file

    found = convert_file(args.file, args.out)
    print(f"{args.file}: {count_of(found.tensors, 'tensor')} with {found.numbers / 1e6:.2f} M numbers")
    if found.dropped:
        shown = [f"{name} ({count})" for name, count in sorted(found.dropped.items(), key=lambda item: -item[1])]
        more = f" and {len(shown) - 8} more types" if len(shown) > 8 else ""
        print(f"dropped objects: {', '.join(shown[:8])}{more}")
    if found.left_out:
        print(f"not in a safetensors file: {', '.join(found.left_out)}; --out FILE.pth keeps them")
    print(f"written: {found.out}")
    return 0
