"""Record the results that `test_parity` compares with: ``PYTHONPATH=tests python -m parity.record [area ...]``.

Results are computed in float64, so that what is stored does not depend on the machine. A case whose float32 results
differ from these by a third of what the test allows is refused, because it could fail on other machines. Cases in
``FLOAT32`` of their area have float32 constants: they are recorded in float32 without oneDNN, and compared with
float32 with it.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

from parity.recipe import Recipe, differences, limit, summarize

AREAS = ("kernels", "layers", "backbones", "heads")
FOLDER = Path(__file__).parent / "recorded"


def record(area: str) -> None:
    """Write ``recorded/<area>.npz``."""
    stored, refused = {}, []
    module = importlib.import_module(f"parity.{area}")
    for name, case in module.CASES.items():
        single = case(Recipe(torch.float32))
        if name in getattr(module, "FLOAT32", ()):
            with torch.backends.mkldnn.flags(enabled=False):
                exact = case(Recipe(torch.float32))
        else:
            exact = case(Recipe(torch.float64))
        worst = 0.0
        for key, tensor in exact.items():
            summary = summarize(tensor)
            relative = [value / limit(key) for value in differences(single[key], summary).values()]
            worst = max([worst, *relative])
            stored |= {f"{name}/{key}/{part}": value for part, value in summary.items()}
        refused += [name] if worst > 1 / 3 else []
        print(f"{area} {name}: float32 uses {worst:.0%} of the tolerance")
    if refused:
        sys.exit(f"not recorded: float32 is too inexact in {', '.join(refused)}")
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / f"{area}.npz", **stored)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or AREAS:
        record(chosen)
