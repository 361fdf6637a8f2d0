"""Record finished training runs in results/trained.csv, from which docs/results.md is made.

    python benchmarks/trained.py RUN [RUN ...] [--command "visionattn train CONFIG --seed {seed}"] [--note TEXT]

A row for each metric of the last validation of a run. Rows of the same command and seed are replaced. The time is that
of the iterations, without validations and the loading of the first batch; it depends on what else the machine did.
"""

import argparse
import csv
from pathlib import Path

import torch
from common import RESULTS, machine, read_rows

from visionattn import __version__
from visionattn.engine.model import find_run
from visionattn.engine.train.curve import read_records

CSV = RESULTS / "trained.csv"
COLUMNS = (
    "data", "config", "seed", "iterations", "metric", "value", "minutes", "command", "note", "machine", "torch",
    "visionattn", "date",
)  # fmt: skip
REPORTED = (
    "AP", "AP50", "AP75", "mask AP", "mask AP50", "mIoU", "aAcc", "mAcc", "pixel_f1", "pixel_auc", "image_auc",
    "PSNR", "SSIM", "Top1", "MaxBoxAcc", "MaxBoxAccV2",
)  # fmt: skip
"""Metrics that are recorded, by their names in the table of a run."""


def minutes(records: list[dict]) -> float:
    """Duration of the iterations; each record has the mean duration since the one before it."""
    times = [(record["iter"], record["seconds"]) for record in records if record.get("seconds")]
    ends = [0, *(iteration for iteration, _ in times)]
    return sum((end - start) * seconds for start, (end, seconds) in zip(ends, times, strict=False)) / 60


def rows_of(folder: Path, command: str, note: str) -> list[dict[str, object]]:
    """Return the rows of a run."""
    config, checkpoint = find_run(folder)
    meta = torch.load(checkpoint, weights_only=True, map_location="cpu")["meta"]
    records = read_records(folder)
    last = next((record for record in reversed(records) if record.get("val")), None)
    if last is None or last["iter"] != meta["iter"]:
        raise SystemExit(f"{folder}: the last checkpoint, of iteration {meta['iter']}, was not validated")
    common = {
        "config": config.stem, "seed": meta["seed"], "iterations": meta["iter"], "minutes": round(minutes(records)),
        "data": config.stem.rsplit("_", 1)[-1], "note": note, "machine": machine(), "torch": torch.__version__,
        "command": command.format(seed=meta["seed"]) or f"visionattn train {config.stem} --seed {meta['seed']}",
        "visionattn": __version__, "date": meta["time"][:10],
    }  # fmt: skip
    found = {name: last["val"][name] for name in REPORTED if name in last["val"]}
    return [common | {"metric": name, "value": round(value, 4)} for name, value in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--command", default="", help="default: the config without options")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    rows: list[dict] = list(read_rows(CSV))
    for folder in args.runs:
        new = rows_of(folder, args.command, args.note)
        key = (new[0]["command"], str(new[0]["seed"]))
        rows = [row for row in rows if (row["command"], str(row["seed"])) != key] + new
        print(folder, *(f"{row['metric']} {row['value']}" for row in new), f"{new[0]['minutes']} min")
    with CSV.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
