"""Make a dataset of local forgeries from a folder of photographs: pictures, masks, and what was done.

Writes DIR/images/*.png, DIR/masks/*.png (255 where forged; none for an untouched picture) and DIR/manifest.json.
The pictures are PNG, so that the JPEG compression that is part of a forgery stays the last thing done to them.
"""

import argparse
from pathlib import Path

from visionattn.errors import DataError
from visionattn.heads.forgery.regions import REGION_SHAPES
from visionattn.heads.forgery.synthesis import OPERATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn forge``."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="photographs, searched to any depth")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--count", type=int, metavar="N", help="pictures to make (default: one of each photograph)")
    parser.add_argument("--crop", type=int, metavar="N", help="take a square of N pixels at a random place")
    parser.add_argument("--share", type=float, default=0.5, metavar="P", help="share that is forged (default: 0.5)")
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME",
        help=f"what to do, from: {', '.join(OPERATIONS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", nargs="+", choices=REGION_SHAPES, default=list(REGION_SHAPES), metavar="NAME",
        help=f"of the regions, from: {', '.join(REGION_SHAPES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--area", nargs=2, type=float, default=(0.02, 0.25), metavar=("MIN", "MAX"),
        help="share of the picture that is forged (default: 0.02 0.25)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="+", type=int, default=[70, 100], metavar="Q",
        help="JPEG quality at the end, one or a range; 0 for none (default: 70 100)",
    )  # fmt: skip
    parser.add_argument(
        "--feather", type=float, default=5.0, metavar="PIXELS", help="largest width of soft edges (default: 5)"
    )
    parser.add_argument(
        "--colour-match", type=float, default=0.3, metavar="P",
        help="how often a pasted part takes the colours of its surroundings (default: 0.3)",
    )  # fmt: skip
    parser.add_argument(
        "--geometry", type=float, default=0.5, metavar="P",
        help="how often a pasted part is scaled and turned (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--objects", nargs="+", default=[], metavar="FILE", help="COCO instances to cut out for splices"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th photograph only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all randomness (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Make the dataset; returns 0."""
    from visionattn.heads.forgery.forge import forge_folder

    quality = None if args.quality == [0] else (args.quality[0], args.quality[-1])
    if len(args.quality) > 2:
        raise DataError(f"--quality takes one or two numbers, got {args.quality}")
    report = forge_folder(
        args.folders, args.out, count=args.count, crop=args.crop, share=args.share, operations=args.operations,
        shapes=args.shapes, area=tuple(args.area), quality=quality, feather=args.feather,
        colour_match=args.colour_match, geometry=args.geometry, objects=args.objects, every=args.every, seed=args.seed,
    )  # fmt: skip
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(report.kinds.items()))
    print(f"{report.forged} forged and {report.untouched} untouched pictures of {report.photos} photographs")
    print(f"forged by: {kinds or 'nothing'}")
    print(f"written: {Path(args.out)} (look at {report.preview.name})")
    return 0
