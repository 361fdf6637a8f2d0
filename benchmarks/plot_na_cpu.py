"""Draw docs/na_cpu.png from benchmarks/results/na_cpu.csv: how much faster than the best alternative.

python benchmarks/plot_na_cpu.py
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"forward": "#2b6cb0", "forward+backward": "#dd8452"}


def ratios(path: Path) -> dict[str, dict[str, float]]:
    """For each case and direction: time of the best alternative over ours."""
    best: dict[str, dict[str, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["contestant"] == "visionattn":
                continue
            name = f"{row['shape']}, {row['kernel']}, dilation {row['dilation']}, {row['heads']} heads"
            if row["dtype"] != "float32":
                name += f", {row['dtype']}"
            case = best.setdefault(name, {})
            case[row["direction"]] = min(case.get(row["direction"], float("inf")), float(row["times_ours"]))
    return best


def main() -> None:
    cases = ratios(HERE / "results" / "na_cpu.csv")
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(cases) + 1.2), layout="constrained")
    for offset, (direction, colour) in zip((0.2, -0.2), COLOURS.items(), strict=True):
        values = [case.get(direction, float("nan")) for case in cases.values()]
        bars = axes.barh([i + offset for i in range(len(cases))], values, 0.38, color=colour, label=direction)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.4, 70)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xlabel("time of the best alternative over ours")
    axes.legend(loc="lower right")
    target = HERE.parent / "docs" / "na_cpu.png"
    figure.savefig(target, dpi=110)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
