"""The length of a run, its learning rate and the workers, from the number of images and the machine."""

import math
import os
from typing import Any

from visionattn.data.recipes import DataSummary, Recipe
from visionattn.io.console import count_of

__all__ = ["length_options", "machine_options"]

EPOCHS = (40, 100)
FEWEST, MOST = (3000, 8000), (10_000, 120_000)
"""Training images seen in a run on a CPU and on a GPU: so many epochs, but not fewer or more images."""
LEAST_EPOCHS, MOST_EPOCHS = (1, 12), 300
VALIDATIONS = 6
WARM_UP = 100


def length_options(
    data: DataSummary, recipe: Recipe, batch: int, epochs: float | None, gpu: bool
) -> tuple[dict[str, Any], tuple[str, str, str]]:
    """Return the options for the schedule, and its line for the user.

    Args:
        data: the data.
        recipe: from the job.
        batch: images per iteration.
        epochs: number of epochs that the user wants, or None.
        gpu: train on a GPU.
    """
    count = data.images["train"]
    if epochs is None:
        seen = max(FEWEST[gpu], min(EPOCHS[gpu] * count, MOST[gpu]) / recipe.cost)
        seen = min(max(seen, LEAST_EPOCHS[gpu] * count), MOST_EPOCHS * count)
        why = f"{count_of(count, 'image')}, {seen / count:.3g} epochs"
    else:
        seen, why = epochs * count, f"{count_of(count, 'image')}, {epochs:g} epochs as asked"
    iterations = max(1, math.ceil(seen / batch))
    interval = max(1, math.ceil(iterations / VALIDATIONS))
    warm_up = min(WARM_UP, iterations // 10)
    saver = {"interval": interval, "save_best": recipe.metric, "rule": "greater", "max_keep_ckpts": 1}
    options = {
        "max_iters": iterations,
        "train_cfg.val_interval": interval,
        **{f"default_hooks.checkpoint.{key}": value for key, value in saver.items()},
        "default_hooks.logger.interval": max(1, min(50, iterations // 20)),
    }
    value = f"{iterations} iterations of {batch}"
    return options, ("schedule", value, f"{why}; warm-up {warm_up}, cosine decay, validation every {interval}")


def machine_options(gpu: bool) -> tuple[dict[str, Any], tuple[str, str, str]]:
    """Return the options for the data workers, and their line for the user."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, max(1, cores // 2)) if gpu else min(2, cores // 2)
    options = {"train_dataloader.num_workers": workers, "train_dataloader.persistent_workers": workers > 0}
    if gpu:
        options |= {"val_dataloader.num_workers": workers, "val_dataloader.persistent_workers": True}
    return options, ("workers", str(workers), f"{cores} CPU core{'s' if cores != 1 else ''}")
