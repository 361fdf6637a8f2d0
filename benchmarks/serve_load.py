"""Load on the server: requests per second beside the predictor alone, and malformed requests among others.

    python benchmarks/serve_load.py [--model digits] [--rounds 8] [--requests 48] [--mixed 1000] [--out FILE]

The server, the predictor alone, and the client are three processes. The first two take turns with the same images, so
that a slow spell of the machine affects both; their results are compared first. The client keeps a number of requests
open; a latency includes the wait in the queue. In the mixed part, a fifth of the requests is malformed, and each has to
get the expected status; latencies are those of the valid requests. The rates of the two parts cannot be compared:
malformed requests are rejected before the model runs, which takes little time. The resident memory of the server is
that of /proc.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import torch
from common import RESULTS, machine, write_csv

from visionattn import __version__
from visionattn.inference.writing import encode_png
from visionattn.io.images import read_image
from visionattn.zoo import find_model

OPEN = 16
"""Requests that the client keeps open: two batches."""
BARE = """
import json, sys, time
from pathlib import Path
from visionattn.engine.compat import install
install()
from visionattn.inference import Predictor
predictor = Predictor.from_pretrained(sys.argv[1])
paths = sorted(Path(sys.argv[2]).glob("*.png"))
print("ready", flush=True)
for line in sys.stdin:
    chosen = [paths[i % len(paths)] for i in range(int(line))]
    start = time.perf_counter()
    found = predictor(chosen)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "first": found[0].to_coco(0)}), flush=True)
"""


def write_images(model: str, folder: Path, count: int = 16) -> list[bytes]:
    """Write shifted copies of the sample image of a model, and return their content."""
    image = read_image(find_model(model).sample)
    files = []
    for number in range(count):
        files.append(encode_png(np.roll(image, 17 * number, axis=1)))
        (folder / f"{number:02d}.png").write_bytes(files[-1])
    return files


class Process:
    """A child process whose lines are read; it is ended at exit."""

    def __init__(self, arguments: list[str]) -> None:
        self.child = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def line(self, pattern: str) -> str:
        """Return the first group of the next line that matches."""
        for text in self.child.stdout:
            if found := re.search(pattern, text):
                return found[1]
        raise RuntimeError(f"{self.child.args} ended")

    def ask(self, text: str) -> dict:
        """Send a line, and return the JSON line of the answer."""
        self.child.stdin.write(f"{text}\n")
        return json.loads(self.child.stdout.readline())

    def memory(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        self.child.wait(20)


async def send(client: httpx.AsyncClient, requests: list[dict]) -> list[tuple[int, float, dict]]:
    """Send all requests, `OPEN` at a time; return the status, the seconds and the content of each answer."""
    answers: list = [None] * len(requests)
    left = iter(range(len(requests)))

    async def work() -> None:
        for number in left:
            start = time.perf_counter()
            while True:
                answer = await client.post("/predict", **requests[number])
                if answer.status_code != 503:
                    break
                await asyncio.sleep(int(answer.headers["retry-after"]))
            answers[number] = answer.status_code, time.perf_counter() - start, answer.json()

    await asyncio.gather(*(work() for _ in range(OPEN)))
    return answers


def good(content: bytes) -> dict:
    return {"files": [("files", ("x.png", content))]}


def malformed(content: bytes, choice: random.Random) -> tuple[dict, int]:
    """Return a malformed request, and the expected status."""
    kinds = [
        ({"files": [("files", ("x.png", choice.randbytes(500)))]}, 415),
        ({"files": [("files", ("x.png", content[: len(content) // 2]))]}, 422),
        ({"files": [("files", ("x.png", b""))]}, 422),
        (good(content) | {"data": {"score_thr": "seven"}}, 422),
        (good(content) | {"data": {"model": "none"}}, 422),
        ({"content": b"{" + choice.randbytes(30), "headers": {"content-type": "application/json"}}, 422),
        ({"content": content, "headers": {"content-type": "image/png"}}, 415),
        ({"json": {"images": ["%%%"]}}, 422),
        ({"files": [("files", ("x.png", content))] * 17}, 413),
        ({"content": choice.randbytes(400), "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422),
    ]
    return choice.choice(kinds)


def percentile(values: list[float], share: float) -> float:
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1)


async def measure(args: argparse.Namespace, files: list[bytes], server: Process, bare: Process, address: str) -> list:
    described = dict(model=args.model, open_requests=OPEN, machine=machine(), processors=os.cpu_count())
    described |= dict(torch=torch.__version__, visionattn=__version__)
    rows = []
    async with httpx.AsyncClient(base_url=address, timeout=300) as client:
        batch = [good(files[number % len(files)]) for number in range(args.requests)]
        warm, alone = await send(client, batch[:OPEN]), bare.ask(str(OPEN))
        assert warm[0][2]["images"][0]["detections"] == alone["first"], "the server predicts something else"
        ratios, rates, rates_alone, latencies = [], [], [], []
        for _ in range(args.rounds):
            start = time.perf_counter()
            answers = await send(client, batch)
            seconds = time.perf_counter() - start
            assert [status for status, _, _ in answers] == [200] * len(batch)
            latencies += [answer[1] for answer in answers]
            rates.append(len(batch) / seconds)
            rates_alone.append(len(batch) / bare.ask(str(len(batch)))["seconds"])
            ratios.append(rates[-1] / rates_alone[-1])
            print(f"server {rates[-1]:.2f} per second, predictor {rates_alone[-1]:.2f}, ratio {ratios[-1]:.3f}")
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            dict(part="throughput", requests=args.rounds * len(batch), lost=0,
                 requests_per_second=round(statistics.median(rates), 3),
                 predictor_images_per_second=round(statistics.median(rates_alone), 3), ratio=round(median, 3),
                 ratio_quartile1=round(low, 3), ratio_quartile3=round(high, 3), p50_ms=percentile(latencies, 0.5),
                 p99_ms=percentile(latencies, 0.99), memory_first_mib="", memory_last_mib="", statuses="") | described
        )  # fmt: skip
        choice, wanted, requests = random.Random(0), [], []
        for number in range(args.mixed):
            content = files[number % len(files)]
            request, status = malformed(content, choice) if number % 5 == 4 else (good(content), 200)
            requests.append(request)
            wanted.append(status)
        memory, latencies, statuses, wrong, start = [], [], Counter(), 0, time.perf_counter()
        for begin in range(0, args.mixed, 100):
            answers = await send(client, requests[begin : begin + 100])
            memory.append(server.memory())
            for (status, seconds, _), expected in zip(answers, wanted[begin : begin + 100], strict=True):
                latencies += [seconds] if expected == 200 else []
                statuses[status] += 1
                wrong += status != expected
            print(f"{begin + len(answers)} requests, memory {memory[-1]:.0f} MiB, wrong answers {wrong}")
        seconds = time.perf_counter() - start
        shown = " ".join(f"{status}:{count}" for status, count in sorted(statuses.items()))
        rows.append(
            rows[0] | dict(part="mixed", requests=args.mixed, lost=args.mixed - sum(statuses.values()) + wrong,
                 requests_per_second=round(args.mixed / seconds, 3), predictor_images_per_second="", ratio="",
                 ratio_quartile1="", ratio_quartile3="", p50_ms=percentile(latencies, 0.5),
                 p99_ms=percentile(latencies, 0.99), memory_first_mib=round(memory[0]),
                 memory_last_mib=round(memory[-1]), statuses=shown)
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48, help="requests of a round (default: 48)")
    parser.add_argument("--mixed", type=int, default=1000, help="requests of the mixed part (default: 1000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_load.csv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(args.model, Path(folder))
        serve = ["-m", "visionattn", "serve", "--model", args.model, "--port", "0"]
        with Process(serve) as server, Process(["-c", BARE, args.model, folder]) as bare:
            address = server.line(r"page: (\S+)/")
            bare.line("(ready)")
            rows = asyncio.run(measure(args, files, server, bare, address))
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
