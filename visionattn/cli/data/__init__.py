"""Create sample data, or download a public dataset, check it and convert it to COCO JSON or index masks.

Without NAME, the datasets are listed. The default output folder is in $VISIONATTN_CACHE or ~/.cache/visionattn. The
name "objects" creates a database of the objects in a LiDAR dataset (--source), for copy-paste augmentation. "convert
FOLDER" writes COCO files for a folder in another format (COCO, YOLO, Pascal VOC, LabelMe, CVAT or classes), and "stats
FOLDER" describes it.
"""

import argparse
from pathlib import Path

from visionattn.cli.data.datasets import print_statistics, run_convert
from visionattn.data.cityscapes import convert_cityscapes
from visionattn.data.digits import build_digit_scenes
from visionattn.data.formats.detect import KINDS
from visionattn.data.public import INSTRUCTIONS, PUBLIC_SETS, fetch_public
from visionattn.errors import DataError
from visionattn.heads.action.samples import build_moving_figures
from visionattn.heads.lidar.data.layouts import LAYOUTS, build_object_database
from visionattn.heads.lidar.simulate.samples import build_lidar_samples
from visionattn.heads.localization.samples import build_single_digits

_SAMPLES = "samples"
_CITYSCAPES = "cityscapes"
_SINGLE = "single-digits"
_FIGURES = "moving-figures"
_LIDAR = "lidar-samples"
_OBJECTS = "objects"
_MADE = {
    _SAMPLES: build_digit_scenes,
    _SINGLE: build_single_digits,
    _FIGURES: build_moving_figures,
    _LIDAR: build_lidar_samples,
}
_CONVERT, _STATS = "convert", "stats"
_OBJECT_OPTIONS = ("source", "layout", "split", "classes")
_FOLDER_OPTIONS = ("folder", "kind", "val", "copy", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn data``."""
    names = [_CONVERT, _STATS, *_MADE, _OBJECTS, *PUBLIC_SETS, *INSTRUCTIONS]
    parser.add_argument("name", metavar="NAME", nargs="?", choices=names, help=", ".join(names))
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="convert, stats: folder of the data")
    parser.add_argument(
        "--out", metavar="DIR", type=Path,
        help="output folder; for cityscapes, the folder of the dataset; for objects, the .npz file; for stats, a .jpg "
        "file with images and their annotations",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="kind", metavar="KIND", choices=KINDS,
        help=f"convert, stats: format of the folder, {', '.join(KINDS)} (default: recognized)",
    )  # fmt: skip
    parser.add_argument(
        "--val",
        metavar="SHARE",
        type=float,
        help="convert: fraction of images to draw for validation if there are none",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="convert: seed of that split (default: 0)")
    parser.add_argument("--copy", action="store_true", default=None, help="convert: copy the images to DIR")
    parser.add_argument("--archive", metavar="FILE", type=Path, help="use a downloaded .zip file")
    parser.add_argument("--url", metavar="URL", help="download the archive from this URL")
    parser.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the archive")
    parser.add_argument("--source", metavar="DIR", type=Path, help="objects: dataset folder")
    parser.add_argument("--layout", choices=LAYOUTS, help="objects: layout of the dataset (default: folder)")
    parser.add_argument("--split", metavar="NAME", help="objects: list of frames or scenes, or subfolder of --source")
    parser.add_argument(
        "--classes", metavar="NAME", nargs="+", help="objects: class names by label (default: those of the dataset)"
    )


def run(args: argparse.Namespace) -> int:
    """Create, download or list datasets, and return 0."""
    if args.name is None:
        _list()
        return 0
    if args.name != _OBJECTS:
        _refuse(args, _OBJECT_OPTIONS)
    if args.name in (_CONVERT, _STATS):
        _refuse(args, ("archive", "url", "sha256"))
        if args.folder is None:
            raise DataError(f"{args.name} requires the folder of the data: visionattn data {args.name} FOLDER")
        if args.name == _STATS:
            _refuse(args, ("val", "copy", "seed"))
            print_statistics(args)
        else:
            args.seed, args.copy = args.seed or 0, bool(args.copy)
            run_convert(args)
        return 0
    _refuse(args, _FOLDER_OPTIONS)
    if args.name not in PUBLIC_SETS:
        options = ("archive", "url", "sha256") + (
            ("out",) if args.name in INSTRUCTIONS and args.name != _CITYSCAPES else ()
        )
        _refuse(args, options)
    if args.name == _OBJECTS:
        _cut_objects(args)
    elif args.name == _CITYSCAPES and args.out is not None:
        _convert_cityscapes(args.out)
    elif args.name in INSTRUCTIONS:
        print(INSTRUCTIONS[args.name].text)
    elif args.name in _MADE:
        folder = _MADE[args.name](args.out)
        print(f"{args.name}: {folder}\nsources and licenses: {folder / 'README.txt'}")
    else:
        if args.archive is not None and args.url is not None:
            raise DataError("`archive` and `url` cannot be combined")
        folder, report = fetch_public(args.name, args.out, archive=args.archive, url=args.url, sha256=args.sha256)
        known = PUBLIC_SETS[args.name]
        print(f"{args.name}: {folder}" + (" (exists already)" if report is None else ""))
        if report is not None:
            print("images: " + ", ".join(f"{count} {split}" for split, count in report.images.items()))
            for note in report.notes:
                print(f"note: {note}")
        print(f"split: {known.split}\nlicense: {known.licence}\nsource: {known.source}")
    return 0


def _refuse(args: argparse.Namespace, options: tuple[str, ...]) -> None:
    for option in options:
        if getattr(args, option) is not None:
            raise DataError(f"`{option}` does not apply to {args.name!r}")


def _cut_objects(args: argparse.Namespace) -> None:
    for option in ("source", "out"):
        if getattr(args, option) is None:
            raise DataError(f"objects requires `{option}`")
    database = build_object_database(args.out, args.layout or "folder", args.source, args.split, args.classes)
    counts = [f"{int((database.labels == label).sum())} {name}" for label, name in enumerate(database.classes)]
    print(f"objects: {args.out}\n{', '.join(counts)}; {len(database.points)} points")


def _convert_cityscapes(folder: Path) -> None:
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("converting", total=None)
        counts = convert_cityscapes(folder, lambda done, total: progress.update(task, completed=done, total=total))
    print(f"cityscapes: {folder}\nimages: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


def _list() -> None:
    print("Created on this machine, without a download:")
    _row(_SAMPLES, "20 MB", "CC BY 2.0 (photographs)", "handwritten digits drawn on photographs: boxes, masks")
    _row(_SINGLE, "15 MB", "CC BY 2.0 (photographs)", "one digit per image, for localization from image labels")
    _row(_FIGURES, "60 MB", "no sources, drawn", "clips of moving figures with keypoints, for pose-aware models")
    _row(_LIDAR, "117 MB", "no sources, simulated", "simulated LiDAR scans of random streets with 3-D boxes")
    _row(_OBJECTS, "", "that of the dataset", "database of the objects in a LiDAR dataset, for copy-paste augmentation")
    print("Your own data, in a folder with annotations of COCO, YOLO, Pascal VOC, LabelMe or CVAT:")
    _row(f"{_CONVERT} FOLDER", "", "that of the data", "write COCO files, and list all that is dropped or changed")
    _row(f"{_STATS} FOLDER", "", "that of the data", "classes, box sizes, near-duplicates across splits, and pictures")
    print("Downloaded, checked and converted:")
    for known in PUBLIC_SETS.values():
        _row(known.name, known.size, known.licence, known.what)
    print("Instructions for a manual download:")
    for known in INSTRUCTIONS.values():
        _row(known.name, known.size, known.licence, known.what)


def _row(name: str, size: str, licence: str, what: str) -> None:
    print(f"  {name:<14} {what}\n  {'':<14} {size + '; ' if size else ''}{licence}")
