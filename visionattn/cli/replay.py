"""Repeat a training iteration that produced NaN or infinity, from its dump; the training data is not needed."""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn replay``."""
    parser.add_argument("dump", metavar="DUMP", help="nonfinite_iter_N_rank_R.pth from the work dir of a run")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="config of the run, which is executed as Python code (default: the newest in the folder of the dump)",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Repeat the iteration and return 0 if NaN or infinity occurred again, else 1."""
    require("mmengine")
    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.replay import replay

    dump = Path(args.dump).expanduser()
    found = replay(dump, load_config(args.config or _config_beside(dump), resolve_data=False), args.device)
    print(f"iteration {found.iteration}, stopped because of its {found.what}")
    print(f"images     {', '.join(Path(name).name for name in found.images) or 'unknown'}")
    print(f"losses     {'  '.join(f'{name} {value:.4g}' for name, value in found.losses.items())}")
    for label, names in (("first bad", found.modules), ("gradients", found.parameters)):
        if names:
            more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
            print(f"{label:<11}{', '.join(names[:5])}{more}")
    print("NaN or infinity occurred again" if found.reproduced else "all values are finite")
    return 0 if found.reproduced else 1


def _config_beside(dump: Path) -> Path:
    configs = sorted(dump.parent.glob("*.py"), key=lambda p: p.stat().st_mtime_ns)
    if not configs:
        raise ConfigError(f"{dump.parent} contains no config (*.py); set `config`")
    return configs[-1]
