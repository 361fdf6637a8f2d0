"""Operations and parameters of MobileNets with blocks replaced by ULSAM: results/ulsam_blocks.csv and a table.

python benchmarks/ulsam_blocks.py

Images of 224x224 pixels, classifiers of 1000 classes. MACs are half of what `torch.utils.flop_counter` counts:
convolutions and the linear layer. The products, softmax and max pooling of ULSAM, like norms and activations, are not
counted. No weights are needed.
"""

import argparse

import timm
import torch
from common import RESULTS, write_csv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionattn import __version__
from visionattn.layers import replace_blocks

CASES = {
    "mobilenetv1_100": ("", "blocks.3.5", "blocks.3.[45]", "blocks.3.[3-5]", "blocks.3.[2-5]", "blocks.3.[1-5]"),
    "mobilenetv2_100": ("", "blocks.5.1", "blocks.[45].1", "blocks.[45].[12]", "blocks.[345].[1-3]"),
}


def macs(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() // 2


def rows_of(name: str) -> list[dict]:
    """One row for each pattern; savings are relative to the first, the original model."""
    rows: list[dict] = []
    for where in CASES[name]:
        with torch.device("meta"):  # counting needs shapes only
            model = timm.create_model(name).eval()
            replaced = replace_blocks(model, "ulsam", where, num_splits=4).modules if where else ()
        row = dict(model=name, where=where, blocks=len(replaced), num_splits=4 if where else "")
        row |= dict(macs_m=macs(model) / 1e6, parameters_m=sum(p.numel() for p in model.parameters()) / 1e6)
        for key in ("macs", "parameters"):
            saved = 1 - row[f"{key}_m"] / (rows[0] if rows else row)[f"{key}_m"]
            row[f"{key}_saved_percent"] = 100 * saved
        rows.append(row)
    digits = {"macs_m": 1, "parameters_m": 3, "macs_saved_percent": 1, "parameters_saved_percent": 1}
    versions = {"torch": torch.__version__, "timm": timm.__version__, "visionattn": __version__}
    return [row | {key: round(row[key], number) for key, number in digits.items()} | versions for row in rows]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False).parse_args()
    rows = [row for name in CASES for row in rows_of(name)]
    write_csv(RESULTS / "ulsam_blocks.csv", rows)
    print("| model | replaced | blocks | M MACs | saved | M parameters | saved |\n|---|---|---|---|---|---|---|")
    for row in rows:
        where = f"`{row['where']}`" if row["where"] else "none"
        counts = f"{row['macs_m']:.1f} | {row['macs_saved_percent']:.1f} %"
        sizes = f"{row['parameters_m']:.2f} | {row['parameters_saved_percent']:.1f} %"
        print(f"| {row['model']} | {where} | {row['blocks']} | {counts} | {sizes} |")


if __name__ == "__main__":
    main()
