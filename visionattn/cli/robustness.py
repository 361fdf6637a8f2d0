"""The part of ``visionattn test --robustness`` that a person sees."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_ladders(config: Any, checkpoint: str | os.PathLike, out: Path, kinds: Sequence[str]) -> int:
    """Test every level of the ladders (all without ``kinds``), print a table, write the curves; returns 0."""
    from rich.console import Console
    from rich.table import Table

    from visionattn.data.degrade import LADDERS
    from visionattn.engine.train.robustness import CURVES, measure_ladders

    console = Console(highlight=False, soft_wrap=True)
    rows: list[tuple[str, float, dict[str, float]]] = []

    def show(kind: str, level: float, metrics: dict[str, float]) -> None:
        rows.append((kind, level, metrics))
        console.print(f"tested {kind}{'' if kind == 'clean' else f' {level:g}'}")

    files = measure_ladders(config, checkpoint, out, kinds or tuple(LADDERS), show)
    names = [n for n in CURVES if n in rows[0][2]] or list(rows[0][2])[:4]
    table = Table("pictures", "level", *names)
    for kind, level, metrics in rows:
        values = [f"{metrics[n]:.3f}" if n in metrics else "-" for n in names]
        table.add_row(kind, "" if kind == "clean" else f"{level:g}", *values)
    console.print(table)
    for file in files:
        relative = os.path.relpath(file)
        console.print(f"written: {file if relative.startswith('..') else relative}")
    return 0
