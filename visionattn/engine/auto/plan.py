"""Plan the training of a model on a folder of data: the config and its options, with reasons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.cells import cell_len

from visionattn.data.formats.detect import Found
from visionattn.data.recipes import DataSummary, Levels, Recipe, Request
from visionattn.engine.auto.length import length_options, machine_options
from visionattn.engine.auto.summary import ORDER, PREFERRED, recognize, summarize
from visionattn.engine.auto.weights import choose_backbone, choose_start, levels_of
from visionattn.engine.config.load import apply_options, parse_options
from visionattn.errors import ConfigError, DataError
from visionattn.io.console import count_of

__all__ = ["Plan", "Wishes", "merged", "plan_training"]

NEEDS = {
    "boxes": "boxes",
    "masks": "instance masks of at least half of the objects",
    "maps": "index masks",
    "labels": "folders train/CLASS and val/CLASS",
}
"""What a job requires, by its `trains_on`, for messages."""
LARGE_CHANNELS, LARGE_RATE = 256, 0.25
"""Backbones with more channels in the last level start with this fraction of the learning rate."""


class TrainableJob(Protocol):
    """What the plan needs of `visionattn.inference.job.Job`."""

    name: str
    trains_on: str

    def recipe(self, data: DataSummary, request: Request) -> Recipe:
        """Return how the job is trained on the data."""


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; None leaves the choice to the plan.

    Attributes:
        task: name of a job.
        model: backbone, a model name of timm.
        size: longer side of the images in pixels.
        epochs: number of epochs.
        batch: images per iteration.
        lr: learning rate.
        start_from: weights, see `visionattn.engine.train.finetune.sources.find_source`.
        cfg_options: options of the config as ``KEY=VALUE``, of which those of ``custom_data`` are used.
    """

    task: str | None = None
    model: str | None = None
    size: int | None = None
    epochs: float | None = None
    batch: int | None = None
    lr: float | None = None
    start_from: str | None = None
    cfg_options: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, low in (("size", 32), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"`{name}` must be at least {low}, got {value}")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"`{name}` must be a positive number, got {value}")


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        config: name of a config of the package.
        options: values by key, for `visionattn.engine.config.load.load_config`.
        start_from: weights to start from, or None.
        rows: (what, value, reason) of each choice.
    """

    config: str
    options: dict[str, Any]
    start_from: str | None
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the table of choices."""
        widths = [max((cell_len(row[column]) for row in self.rows if row[2]), default=0) for column in (0, 1)]
        for what, value, why in self.rows:
            cells = [text + " " * (width - cell_len(text)) for text, width in zip((what, value), widths, strict=True)]
            yield "  ".join(["", *cells, why]).rstrip()


def plan_training(root: str | Path, jobs: Sequence[TrainableJob], wishes: Wishes) -> Plan:
    """Choose how to train a model on the data in a folder.

    Args:
        root: the folder.
        jobs: the known jobs.
        wishes: what the user asks for.

    Raises:
        ConfigError: a wish cannot be met.
        DataError: the data is not recognized, or malformed, or has nothing to train on.
    """
    root = Path(root).expanduser().absolute()
    by_name = {job.name: job for job in jobs if job.trains_on}
    if wishes.task is not None and wishes.task not in by_name:
        raise ConfigError(f"`task` must be one of {', '.join(sorted(by_name))}, got {wishes.task!r}")
    given = _custom_data(wishes.cfg_options)
    gpu = torch.cuda.is_available()
    name, why = choose_backbone(wishes.model, gpu, wishes.start_from)
    found, given, notes = recognize(root, given)
    if wishes.task is not None:
        _check_found(root, found, by_name[wishes.task])
    data = summarize(root, found, given, by_name[wishes.task].trains_on if wishes.task else None)
    job = by_name[wishes.task] if wishes.task else _choose(data, by_name)
    _check(data, job)
    levels = levels_of(name)
    recipe = job.recipe(data, Request(levels, gpu, wishes.size))
    batch = wishes.batch or max(1, min(recipe.batch, data.images["train"]))
    options = {f"custom_data.{key}": value for key, value in data.custom_data.items()} | recipe.options
    steps, schedule = length_options(data, recipe, batch, wishes.epochs, gpu)
    asked = parse_options(wishes.cfg_options)
    if iterations := asked.get("train_cfg.max_iters") or asked.get("max_iters"):
        schedule = ("schedule", f"{iterations} iterations of {batch}", "as asked")
    workers, machine = machine_options(gpu)
    rate = _rate(recipe, levels, batch) if wishes.lr is None else wishes.lr
    options |= steps | workers | {"train_dataloader.batch_size": batch, "optim_wrapper.optimizer.lr": rate}
    start, origin = choose_start(wishes.start_from, name, recipe.starts, data.classes)
    shown = ", ".join(data.classes[:5]) + (", ..." if len(data.classes) > 5 else "")
    splits = ", ".join(f"{split} {count}" for split, count in data.images.items())
    rows = [
        ("data", found.kind, found.reason),
        ("images", splits, f"{len(data.boxes)} objects to train on" if len(data.boxes) else ""),
        ("classes", str(len(data.classes)), shown),
        ("task", job.name, "as asked" if wishes.task else _reason(data, job)),
        ("config", recipe.config, ""),
        ("backbone", name, why),
        *recipe.choices,
        ("batch size", str(batch), "as asked" if wishes.batch else f"on a {'GPU' if gpu else 'CPU'}"),
        schedule,
        ("learning rate", f"{rate:.2g}", "as asked" if wishes.lr else "for the batch size and the backbone"),
        machine,
        ("start from", start or "random weights", origin),
        *(("note", note, "") for note in (*notes, *data.notes)),
    ]
    return Plan(recipe.config, options, start, rows)


def merged(options: Mapping[str, Any], items: Sequence[str]) -> dict[str, Any]:
    """Return the options of a plan with those of the user, which replace them.

    Args:
        options: of a `Plan`.
        items: ``KEY=VALUE`` as given on the command line.
    """
    given = parse_options(items)
    if "max_iters" in given or "train_cfg.max_iters" in given:  # the intervals are those of another length
        intervals = ("train_cfg.val_interval", "default_hooks.checkpoint.interval", "max_iters")
        options = {key: value for key, value in options.items() if key not in intervals}
    return {**options, **given}


def _custom_data(items: Sequence[str]) -> dict[str, Any]:
    """Return the keys of the block ``custom_data`` that the user has set, with their types."""
    block: dict[str, Any] = {"custom_data": {}}
    apply_options(block, {k: v for k, v in parse_options(items).items() if k.startswith("custom_data.")})
    return block["custom_data"]


def _check_found(root: Path, found: Found, job: TrainableJob) -> None:
    """Raise `DataError` if a folder cannot have what the job requires."""
    objects = found.kind not in ("masks", "class-folders")
    possible = {"boxes": found.kind != "masks", "masks": objects, "maps": found.maps, "labels": found.labels}
    if not possible[job.trains_on]:
        raise DataError(f"{root}: has {found.kind} ({found.reason}); `task` {job.name} requires {NEEDS[job.trains_on]}")


def _choose(data: DataSummary, by_name: Mapping[str, TrainableJob]) -> TrainableJob:
    """Return the job for the annotations of which the data is used first."""
    wanted = next(kind for kind in PREFERRED.get(data.kind, ORDER) if kind in data.annotations)
    return next(job for job in by_name.values() if job.trains_on == wanted)


def _reason(data: DataSummary, job: TrainableJob) -> str:
    others = sorted(data.annotations - {job.trains_on})
    if job.trains_on == "masks" and "maps" in others:
        return "objects have masks; --task semantic uses the index masks"
    return {
        "masks": "objects have boxes and masks; --task detection uses the boxes",
        "boxes": "objects have boxes" + (f", {data.masked} of {len(data.boxes)} have masks" if data.masked else ""),
        "maps": "the masks have a class for each pixel",
        "labels": "one subfolder per class",
    }[job.trains_on]


def _check(data: DataSummary, job: TrainableJob) -> None:
    """Raise `DataError` if there is nothing to train the job on."""
    if not data.images.get("train"):
        raise DataError(f"{data.root}: has no training images")
    if job.trains_on in ("boxes", "masks") and not len(data.boxes):
        raise DataError(f"{data.root}: none of the {count_of(data.images['train'], 'training image')} has an object")
    if job.trains_on not in data.annotations:
        raise DataError(
            f"{data.root}: {data.masked} of {len(data.boxes)} objects have masks; `task` {job.name} requires "
            f"{NEEDS[job.trains_on]}"
        )


def _rate(recipe: Recipe, levels: Levels, batch: int) -> float:
    """Return the learning rate: by the square root of the batch size, as for Adam, and lower for large backbones."""
    rate, batch_of_rate = recipe.lr
    large = max(levels.channels.values()) > LARGE_CHANNELS
    return float(f"{rate * min(2.0, math.sqrt(batch / batch_of_rate)) * (LARGE_RATE if large else 1):.2g}")
