"""Files of reduced precision beside the float32 file: size, time per image and accuracy."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import BackendError
from visionattn.inference.export.preprocessing import apply_steps
from visionattn.inference.onnx.half import to_half
from visionattn.inference.onnx.int8 import Quantizer
from visionattn.inference.onnx.model import OnnxModel
from visionattn.inference.onnx.testing import OnnxProgram

__all__ = ["Comparison", "compare_times", "evaluate", "reduce_file"]

IN_FLOAT = (0.0, 0.1, 0.25, 0.5)
"""Shares of the layers that remain in float32, tried in this order until the loss of accuracy is small enough."""
ROUNDS = 7
"""Number of images whose times are measured."""


@dataclass(frozen=True)
class Comparison:
    """A file of reduced precision and the float32 file; each pair is float32 first.

    Attributes:
        precision: ``"float16"`` or ``"int8"``.
        in_float: number of layers that remain in float32, for int8.
        layers: number of layers, for int8.
        sizes: bytes.
        seconds: median time per image.
        metrics: metrics on the validation data, or None.
    """

    precision: str
    in_float: int
    layers: int
    sizes: tuple[int, int]
    seconds: tuple[float, float]
    metrics: tuple[Mapping[str, float], Mapping[str, float]] | None

    @property
    def names(self) -> list[str]:
        """The main metrics: mIoU, or the first metric and, for detectors with masks, the same metric of masks."""
        before = {} if self.metrics is None else self.metrics[0]
        first = "mIoU" if "mIoU" in before else next(iter(before), "")
        return [name for name in before if name.split()[-1] == first]

    @property
    def loss(self) -> float | None:
        """The largest decrease of a main metric as a fraction of 1: 0.01 is one point. Percent count as fractions."""
        if self.metrics is None:
            return None
        before, after = self.metrics
        unit = 100 if any(before[name] > 1 for name in self.names) else 1
        return max(before[name] - after[name] for name in self.names) / unit


def reduce_file(
    path: str | Path,
    out: str | Path,
    calibration: Sequence[np.ndarray] | None = None,
    config: Any = None,
    max_drop: float | None = None,
    threads: int | None = None,
) -> Iterator[Comparison]:
    """Write a file of reduced precision, and compare it with the float32 file.

    If an int8 file loses more than `max_drop`, the layers whose quantization changes the outputs most remain in
    float32: a tenth of them, then a quarter, then half.

    Args:
        path: the float32 file of ``visionattn export``.
        out: the file of reduced precision, which is written only if its loss is small enough.
        calibration: images for int8, see `Quantizer`; None for float16.
        config: config with the validation data; None to measure no accuracy.
        max_drop: maximum loss, see `Comparison`.
        threads: number of threads of ONNX Runtime.

    Yields:
        The comparison of each attempt; the last one is that of the file.

    Raises:
        BackendError: the loss exceeds `max_drop`, or ONNX Runtime cannot quantize the file.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial.onnx")
    try:
        quantizer = None if calibration is None else Quantizer(path, calibration)
        layers = 0 if quantizer is None else quantizer.count
        before, images = (None, []) if config is None else evaluate(path, config, threads)
        images = images or _examples(path, calibration)
        for in_float in sorted({math.ceil(share * layers) for share in IN_FLOAT}):
            if quantizer is None:
                to_half(path, partial)
            else:
                quantizer.write(partial, in_float)
            sizes = (Path(path).stat().st_size, partial.stat().st_size)
            seconds = compare_times(path, partial, images, threads)
            metrics = None if before is None else (before, evaluate(partial, config, threads)[0])
            done = Comparison("int8" if quantizer else "float16", in_float, layers, sizes, seconds, metrics)
            yield done
            if max_drop is None or done.loss is None or done.loss <= max_drop:  # not for NaN
                partial.replace(out)
                return
        raise BackendError(
            f"{out}: is not written, since {done.precision} loses {done.loss:.4f}, more than `max_drop` {max_drop:g}"
        )
    finally:
        partial.unlink(missing_ok=True)


def evaluate(path: str | Path, config: Any, threads: int | None = None) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the metrics of ``visionattn test --onnx``, and a few images of the data after the test pipeline."""
    from visionattn.engine.train.testing import test

    program = OnnxProgram(path, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        return test(config, program, folder).metrics, program.images


def compare_times(
    path: str | Path,
    other: str | Path,
    images: Sequence[np.ndarray],
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Return the median seconds per image of two files, which run in turn on each image.

    Args:
        path, other: the files.
        images: images after the test pipeline, BGR ``[H, W, 3]``.
        threads: number of threads of ONNX Runtime.
        clock: the time in seconds; `time.process_time` is less disturbed by other programs.
    """
    models = [OnnxModel(file, threads=threads) for file in (path, other)]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        batch = models[0].batch_of(images[number % len(images)])
        for model, spent in zip(models, times, strict=True):
            for _ in range(2):  # ONNX Runtime allocates memory in the first call for each size
                start = clock()
                model.infer(batch)
                seconds = (clock() - start) / len(batch)
            spent.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


def _examples(path: str | Path, images: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Return some of the images after the test pipeline, or noise of the size that the file was traced with."""
    about = OnnxModel(path).about
    if images:
        return [apply_steps(image, about["pipeline"]) for image in images[:ROUNDS]]
    return [np.random.default_rng(0).integers(0, 256, (*about["input"][2:], 3), np.uint8)]
