"""Large runs of ``visionattn infer``: images per second beside a plain PyTorch loop, and memory over the run.

    python benchmarks/many_images.py [--images 10000] [--model digits] [--rounds 5] [--out results/many_images.csv]

The loop reads the same files with OpenCV, runs the same model through its test pipeline in batches, and keeps only the
number of boxes; the run reads the files with all checks, decodes the predictions and writes them as JSON Lines. Both
alternate over chunks of 500 images. The memory is the resident size of the process during one run over all images.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from common import RESULTS, machine, write_csv

from visionattn.inference import Predictor
from visionattn.inference.bulk import BulkOptions, predict_bulk, read_parts
from visionattn.io.inputs import iterate_inputs

CHUNK = 500


def write_images(folder: Path, count: int, height: int, width: int) -> None:
    """Write smooth random images as JPEG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:06}.jpg"), image)


def plain_loop(predictor: Predictor, files: list[Path], batch: int) -> int:
    """Return the number of boxes above the threshold that the model finds."""
    model, found = predictor.model, 0
    for start in range(0, len(files), batch):
        samples = [{"img": cv2.imread(str(path)), "img_id": 0} for path in files[start : start + batch]]
        for output in model.run(samples):
            found += int((output.pred_instances.scores >= predictor.options.score_thr).sum())
    return found


def bulk_run(predictor: Predictor, folder: Path, out: Path, on_progress=lambda count: None) -> int:
    """Return the number of boxes in the records."""
    inputs = [folder]
    predict_bulk(predictor, iterate_inputs(inputs), inputs, out, BulkOptions(), {}, on_progress)
    return sum(len(record["detections"]) for record in read_parts(out))


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=str(RESULTS / "many_images.csv"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    predictor = Predictor.from_pretrained(args.model, "cpu", batch_size=args.batch_size, score_thr=0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "chunk", CHUNK, *args.size)
        files = sorted((folder / "chunk").iterdir())
        assert plain_loop(predictor, files, args.batch_size) == bulk_run(predictor, folder / "chunk", folder / "check")
        times: dict[str, list[float]] = {"loop": [], "run": []}
        for number in range(args.rounds):
            start = time.perf_counter()
            plain_loop(predictor, files, args.batch_size)
            middle = time.perf_counter()
            bulk_run(predictor, folder / "chunk", folder / f"out{number}")
            times["loop"].append(CHUNK / (middle - start))
            times["run"].append(CHUNK / (time.perf_counter() - middle))
        loop, run = (statistics.median(times[kind]) for kind in ("loop", "run"))

        write_images(folder / "all", args.images, *args.size)
        sizes: list[float] = []
        finished = [0]

        def note(count: int) -> None:
            finished[0] += count
            if finished[0] % CHUNK == 0:
                sizes.append(resident())

        bulk_run(predictor, folder / "all", folder / "all_out", note)
    row = {
        "model": args.model, "images": args.images, "size": f"{args.size[1]}x{args.size[0]}", "threads": args.threads,
        "loop_images_per_s": round(loop, 1), "run_images_per_s": round(run, 1), "ratio": round(run / loop, 3),
        f"mib_after_{CHUNK}": round(sizes[0]), "mib_half": round(sizes[len(sizes) // 2]), "mib_end": round(sizes[-1]),
        "machine": machine(),
    }  # fmt: skip
    print(row)
    write_csv(Path(args.out), [row])


if __name__ == "__main__":
    main()
