"""Draw training samples after all transforms of the data pipeline, with their annotations."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn browse``."""
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: outputs/browse/<path of the config>)")
    parser.add_argument("--number", type=int, default=8, metavar="N", help="number of samples (default: 8)")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="dataset split (default: train)"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override config keys"
    )


def run(args: argparse.Namespace) -> int:
    """Draw the samples and return 0."""
    from visionattn.errors import ConfigError, require

    if args.number < 1:
        raise ConfigError(f"`number` must be at least 1, got {args.number}")
    require("mmengine")
    from visionattn.engine.config.checks import check_config
    from visionattn.engine.config.load import load_config
    from visionattn.engine.model import model_class
    from visionattn.inference.job import job_of
    from visionattn.inference.writing import write_png
    from visionattn.io.console import track

    config = load_config(args.config, args.cfg_options)
    check_config(config, (args.split,))
    job = job_of(model_class(config), config)
    out = Path(args.out) if args.out else _default_folder(Path(args.config))
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    samples = track(job.draw_samples(config, args.split, args.number), "drawing", args.number)
    for count, (name, image) in enumerate(samples, 1):
        write_png(out / f"{count - 1:03d}_{Path(name).stem}.png", image)
    print(f"{count} images: {out}")
    return 0


def _default_folder(config: Path) -> Path:
    """Return a folder named by the path of a config, since configs in different folders may have one name."""
    path = config.resolve().with_suffix("")
    inside = path.is_relative_to(Path.cwd())
    return Path("outputs", "browse", *(path.relative_to(Path.cwd()).parts if inside else path.parts[1:]))
