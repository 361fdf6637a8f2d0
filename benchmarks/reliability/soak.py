"""Many steps and many pictures in one process: memory and open files must stay level."""

import os
from pathlib import Path

import numpy as np

from visionattn.engine.config.load import load_config
from visionattn.engine.train.hooks import StopHook
from visionattn.engine.train.train import train
from visionattn.inference import Predictor

from .setting import Row, make_config

__all__ = ["predicting", "training"]

LEVEL = 40.0
"""MB that the memory may grow in the second half: allocators round, logs grow."""


def _memory() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _row(what: str, count: int, seen: list[tuple[float, int]]) -> Row:
    half, end = seen[len(seen) // 2], seen[-1]
    grown = end[0] - half[0]
    outcome = f"memory {half[0]:.0f} MB half way, {end[0]:.0f} MB at the end; open files {half[1]} and {end[1]}"
    return Row(what, count, outcome, "nothing" if grown < LEVEL and end[1] <= half[1] + 2 else "memory or handles")


def training(folder: Path, steps: int = 2000) -> Row:
    """Training steps in this process."""
    seen: list[tuple[float, int]] = []
    original = StopHook.after_train_iter

    def looking(self, runner, *args, **kwargs):
        if (runner.iter + 1) % max(1, steps // 20) == 0:
            seen.append((_memory(), _files()))
        return original(self, runner, *args, **kwargs)

    StopHook.after_train_iter = looking
    try:
        config = make_config(folder / "soak", iterations=steps, every=max(1, steps // 10))
        train(load_config(config, {"default_hooks.logger.interval": 100}), work_dir=folder / "soak_run")
    finally:
        StopHook.after_train_iter = original
    return _row("training steps in one process", steps, seen)


def predicting(folder: Path, images: int = 2000) -> Row:
    """Pictures of changing sizes through one predictor."""
    predictor = Predictor.from_run(folder / "soak_run", device="cpu")
    rng, seen = np.random.default_rng(0), []
    for index in range(images):
        height, width = rng.integers(32, 97, 2)
        predictor(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        if (index + 1) % max(1, images // 20) == 0:
            seen.append((_memory(), _files()))
    return _row("predictions for images of varying sizes in one process", images, seen)
