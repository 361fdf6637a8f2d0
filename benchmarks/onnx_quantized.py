"""Files of the models of the package in float16 and int8: size, time per image and accuracy, beside float32.

    python benchmarks/onnx_quantized.py --data nuclei=data/nuclei blood-cells=data/bccd digits=data/samples
        forgery=data/forged [--files exported] [--threads 1] [--table] [--out benchmarks/results/onnx_quantized.csv]

The folders are those of the configs, with the training images for calibration beside the validation images. That of
`forgery` has two folders in it, which ``visionattn forge`` made: ``cut``, as in its config, and ``calibration``.
Rows of other models are kept. The CPU time of one thread is measured, since it depends less on other programs than the
duration.
``--table`` only prints the rows of the CSV as a Markdown table.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from common import RESULTS, machine, read_rows, write_csv

import visionattn.openmmlab  # noqa: F401  adds the jobs
from visionattn import __version__
from visionattn.engine.compat import install
from visionattn.engine.config.load import load_config
from visionattn.errors import BackendError
from visionattn.inference.export import export_model, network_of_run
from visionattn.inference.export.preprocessing import apply_steps
from visionattn.inference.onnx.model import OnnxModel
from visionattn.inference.onnx.reduced import compare_times, reduce_file
from visionattn.io.images import read_image
from visionattn.zoo import find_model

CASES = {  # option of the folder, calibration images within it, size that is traced, dynamic axes
    "nuclei": ("custom_data.root={}", "images/train", (160, 192), ("batch", "size")),
    "blood-cells": ("custom_data.root={}", "images/train", (160, 192), ("batch", "size")),
    "digits": ("custom_data.root={}", "images/train", (160, 192), ("batch", "size")),
    "forgery": ("test_dataloader.dataset.data_root={}/cut", "calibration/images", (256, 256), ()),
}
CALIBRATION = 32


def export(name: str, size: tuple[int, int], dynamic: tuple[str, ...], folder: Path) -> Path:
    """Export a model, unless its file exists."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        export_model(network_of_run(find_model(name).config, find_model(name).weights), path, size, dynamic=dynamic)
    return path


def cpu_times(source: Path, out: Path, images: list[np.ndarray], threads: int) -> tuple[float | str, float | str]:
    """Return the CPU time per image of both files in milliseconds, or nothing if the second was not written."""
    if not out.exists():
        return "", ""
    steps = OnnxModel(source).about["pipeline"]
    prepared = [apply_steps(image, steps) for image in images[:7]]
    first, second = compare_times(source, out, prepared, threads, time.process_time)
    return round(first * 1e3, 1), round(second * 1e3, 1)


def table(path: Path) -> str:
    """Return the CSV as a Markdown table."""
    lines = [
        "| model | precision | MiB | CPU ms per image | metric | float32 | reduced |",
        "|---|---|---|---|---|---|---|",
    ]
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            kept = f", {row['in_float']} of {row['layers']} layers in float32" if row["in_float"] != "0" else ""
            kept += "" if row["written"] == "True" else ", refused"
            cells = [row["model"], row["precision"] + kept, f"{row['mib']} instead of {row['float32_mib']}"]
            cells += [
                f"{row['cpu_ms']} instead of {row['float32_cpu_ms']}" if row["cpu_ms"] else "-",
                row["metric"],
                row["float32_value"],
                row["value"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", nargs="+", default=[], metavar="MODEL=FOLDER")
    parser.add_argument("--files", type=Path, default=Path("exported"), help="folder of the files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--table", action="store_true", help="print the table of the CSV")
    parser.add_argument("--out", type=Path, default=RESULTS / "onnx_quantized.csv")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    install()
    torch.set_num_threads(arguments.threads)
    common = {"machine": machine(), "onnxruntime": onnxruntime.__version__, "visionattn": __version__}
    entries = dict(entry.split("=", 1) for entry in arguments.data)
    rows: list[dict] = [row for row in read_rows(arguments.out) if row["model"] not in entries]
    for name, folder in entries.items():
        option, calibration, size, dynamic = CASES[name]
        source = export(name, size, dynamic, arguments.files)
        config = load_config(find_model(name).config, [option.format(folder)])
        files = sorted(path for path in Path(folder, calibration).iterdir() if path.suffix in (".jpg", ".png"))
        images = [read_image(path, 1 << 28) for path in files[:: max(1, len(files) // CALIBRATION)][:CALIBRATION]]
        for precision, given in (("float16", None), ("int8", images)):
            out = arguments.files / f"{name}-{precision}.onnx"
            try:
                for done in reduce_file(source, out, given, config, arguments.max_drop, arguments.threads):  # noqa: B007
                    pass
            except BackendError as error:  # the last attempt loses too much
                out.unlink(missing_ok=True)
                print(error)
            row = {"model": name, "precision": precision, "in_float": done.in_float, "layers": done.layers}
            row |= {"float32_mib": round(done.sizes[0] / 2**20, 1), "mib": round(done.sizes[1] / 2**20, 1)}
            row |= dict(
                zip(("float32_cpu_ms", "cpu_ms"), cpu_times(source, out, images, arguments.threads), strict=True)
            )
            for metric in done.names:
                values = {"float32_value": done.metrics[0][metric], "value": done.metrics[1][metric]}
                found = {"metric": metric, **{key: round(value, 4) for key, value in values.items()}}
                rows.append(row | found | {"calibration_images": len(given or ()), "written": out.exists()} | common)
                print(rows[-1], flush=True)
        write_csv(arguments.out, sorted(rows, key=lambda row: list(CASES).index(row["model"])))


if __name__ == "__main__":
    main()
