"""Create a dataset of local image forgeries with masks from photographs.

Writes DIR/images/*.png, DIR/masks/*.png (255 inside the forged region; none for authentic images) and
DIR/manifest.json with the parameters of each forgery. Images are stored as PNG, which keeps the traces of the final
JPEG compression.
"""

import argparse
from pathlib import Path

from visionattn.errors import DataError
from visionattn.heads.forgery.create.regions import REGION_SHAPES
from visionattn.heads.forgery.create.synthesis import ALL_OPERATIONS, ALL_SHAPES, OPERATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn forge``."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder with photographs, searched recursively")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    parser.add_argument("--count", type=int, metavar="N", help="number of images (default: one per photograph)")
    parser.add_argument("--crop", type=int, metavar="N", help="crop a random square of NxN pixels")
    parser.add_argument(
        "--share", type=float, default=0.5, metavar="P", help="fraction of forged images (default: 0.5)"
    )
    parser.add_argument(
        "--operations", nargs="+", choices=ALL_OPERATIONS, default=list(OPERATIONS), metavar="NAME",
        help=f"forgery operations: {', '.join(ALL_OPERATIONS)} (default: all but regenerate)",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", nargs="+", choices=ALL_SHAPES, default=list(REGION_SHAPES), metavar="NAME",
        help=f"shapes of forged regions: {', '.join(ALL_SHAPES)} (default: all but the last two, parts of a scene)",
    )  # fmt: skip
    parser.add_argument(
        "--area", nargs=2, type=float, default=(0.02, 0.25), metavar=("MIN", "MAX"),
        help="forged fraction of the image area (default: 0.02 0.25)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="+", type=int, default=[70, 100], metavar="Q",
        help="quality of the final JPEG compression, a number or a range; 0 is none (default: 70 100)",
    )  # fmt: skip
    parser.add_argument(
        "--feather", type=float, default=5.0, metavar="PIXELS", help="maximum width of soft edges (default: 5)"
    )
    parser.add_argument(
        "--colour-match", type=float, default=0.3, metavar="P",
        help="probability of matching the colors of pasted content to its surroundings (default: 0.3)",
    )  # fmt: skip
    parser.add_argument(
        "--geometry", type=float, default=0.5, metavar="P",
        help="probability of scaling and rotating pasted content (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--objects", nargs="+", default=[], metavar="FILE", help="COCO files with instance masks to splice"
    )
    parser.add_argument(
        "--max-seam", type=float, metavar="X",
        help="discard forgeries whose border has more than X times the contrast of the original (default: keep all)",
    )  # fmt: skip
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use only every N-th photograph (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Create the dataset and return 0."""
    from visionattn.heads.forgery.create.forge import forge_folder

    quality = None if args.quality == [0] else (args.quality[0], args.quality[-1])
    if len(args.quality) > 2:
        raise DataError(f"`quality` must be one or two numbers, got {len(args.quality)}")
    report = forge_folder(
        args.folders, args.out, count=args.count, crop=args.crop, share=args.share, operations=args.operations,
        shapes=args.shapes, area=tuple(args.area), quality=quality, feather=args.feather,
        colour_match=args.colour_match, geometry=args.geometry, objects=args.objects, max_seam=args.max_seam,
        every=args.every, seed=args.seed,
    )  # fmt: skip
    operations = ", ".join(f"{name} {count}" for name, count in sorted(report.kinds.items()))
    print(f"{report.forged} forged and {report.untouched} authentic images from {report.photos} photographs")
    print(f"operations: {operations or 'none'}")
    print(f"results: {Path(args.out)}, preview: {report.preview.name}")
    return 0
