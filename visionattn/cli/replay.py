"""Run the iteration again at which a training met NaN or infinity, from the dump that it left, without its data."""

import argparse
from pathlib import Path

from visionattn.errors import ConfigError, require

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("dump", metavar="DUMP", help="nonfinite_iter_N_rank_R.pth from a run's work dir")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="config of the run (default: the one in the dump's folder); it is Python and run",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Replay; returns 0 if NaN or infinity came up again, and 1 if not."""
    require("mmengine")
    from visionattn.engine.config.load import load_config
    from visionattn.engine.train.replay import replay

    dump = Path(args.dump).expanduser()
    found = replay(dump, load_config(args.config or _config_beside(dump), resolve_data=False), args.device)
    print(f"iteration {found.iteration}, stopped for its {found.what}")
    print(f"images     {', '.join(Path(name).name for name in found.images) or 'not named'}")
    print(f"losses     {'  '.join(f'{name} {value:.4g}' for name, value in found.losses.items())}")
    for label, names in (("first bad", found.modules), ("gradients", found.parameters)):
        if names:
            more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
            print(f"{label:<11}{', '.join(names[:5])}{more}")
    print("NaN or infinity came up again" if found.reproduced else "everything is finite here")
    return 0 if found.reproduced else 1


def _config_beside(dump: Path) -> Path:
    configs = sorted(dump.parent.glob("*.py"), key=lambda p: p.stat().st_mtime_ns)
    if not configs:
        raise ConfigError(f"{dump.parent}: has no config (*.py) beside the dump; give --config FILE")
    return configs[-1]
