"""Console output of ``visionattn test --robustness``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_ladders(
    config: Any, checkpoint: str | os.PathLike, out: Path, kinds: Sequence[str], distributed: bool = False
) -> None:
    """Evaluate all levels of degradation, print a table and write the curves.

    Args:
        config: loaded config.
        checkpoint: weights file.
        out: output folder.
        kinds: keys of `visionattn.data.degrade.DEGRADATION_LEVELS`; empty means all.
        distributed: see `visionattn.engine.train.testing.test`.
    """
    from rich.table import Table

    from visionattn.data.degrade import DEGRADATION_LEVELS
    from visionattn.engine.train.progress import screen
    from visionattn.engine.train.robustness import evaluate_robustness

    console = screen()
    rows: list[tuple[str, float, dict[str, float]]] = []

    def show(kind: str, level: float, metrics: dict[str, float]) -> None:
        rows.append((kind, level, metrics))
        console.print(f"tested {kind}{'' if kind == 'clean' else f' {level:g}'}")

    files = evaluate_robustness(config, checkpoint, out, kinds or tuple(DEGRADATION_LEVELS), show, distributed)
    names = list(rows[0][2])[:4]
    table = Table("degradation", "level", *names)
    for kind, level, metrics in rows:
        values = [f"{metrics[n]:.3f}" if n in metrics else "-" for n in names]
        table.add_row(kind, "" if kind == "clean" else f"{level:g}", *values)
    console.print(table)
    for file in files:
        relative = os.path.relpath(file)
        console.print(f"written: {file if relative.startswith('..') else relative}")
