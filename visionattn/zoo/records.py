"""All models as records of one form, for lists and JSON."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visionattn.io.cache import models_dir
from visionattn.zoo import find_model, model_names
from visionattn.zoo.catalog import PublishedModel, published_models

__all__ = ["Record", "backbones", "is_downloaded", "published", "select", "shipped"]

_JOBS = {"atss": "detection", "forgery-net": "forgery detection", "mask-rcnn": "instance segmentation"}
"""Jobs of the models of the package by the first part of their configs."""


@dataclass(frozen=True)
class Record:
    """A model as it is listed.

    Attributes:
        name: its name.
        kind: ``"package"``, ``"published"`` or ``"backbone"``.
        job: such as ``"detection"``.
        data: data it was trained on.
        scores: published scores by metric; those of models of the package are in their cards.
        parameters: number of parameters; None if it is not known without building the model.
        config: name of the config that builds it.
        paper, repository: addresses.
        code_license, weights_license: licenses, ``"not stated"`` if the authors state none.
        checked: what was checked with this package.
        urls: addresses of the weights.
        file: path of the weights on this machine, or where they belong.
        note: what to know before using it, such as a dead address.
        usable: this package can run it.
    """

    name: str
    kind: Literal["package", "published", "backbone"]
    job: str
    data: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    config: str | None = None
    paper: str = ""
    repository: str = ""
    code_license: str = ""
    weights_license: str = "not stated"
    checked: str = ""
    urls: tuple[str, ...] = ()
    file: str = ""
    note: str = ""
    usable: bool = True


def shipped() -> list[Record]:
    """Return the models of the package; `data` is the first sentence of the card."""
    records = []
    for name in model_names():
        model = find_model(name)
        text = model.card.read_text(encoding="utf-8")
        config = re.search(r"Config:\s+`([\w.-]+)`", text)
        number = re.search(r"([\d.]+) M\s+parameters", text)
        records.append(
            Record(
                name, "package", _JOBS.get(config[1].split("_")[0], "") if config else "", model.summary,
                parameters=round(float(number[1]) * 1e6) if number else None, config=config[1] if config else None,
                weights_license="in the card", checked="trained and tested here", file=str(model.weights),
            )
        )  # fmt: skip
    return records


def published() -> list[Record]:
    """Return the whole models that their authors published."""
    return [_published(model) for model in published_models().values()]


def _published(model: PublishedModel) -> Record:
    about = model.about
    return Record(
        model.name, "published", model.job, model.data, model.scores, model.parameters, model.config, about.paper,
        about.repository, about.code_license, about.weights_license, about.checked, model.urls,
        str(models_dir() / model.file), model.note, not model.unusable,
    )  # fmt: skip


def backbones() -> list[Record]:
    """Return the backbones with released weights."""
    from visionattn.zoo.backbones import published_backbones  # imports timm

    return [
        Record(
            name, "backbone", "classification", f"ImageNet-{'22k' if model.classes > 1000 else '1k'}",
            {} if model.top1 is None else {"top-1": model.top1}, paper=model.paper, repository=model.repository,
            code_license=model.code_license, weights_license=model.weights_license, urls=(model.url,),
            file="" if "huggingface" in model.url else str(models_dir() / f"{name}.pth"), note=model.note,
        )
        for name, model in published_backbones().items()
    ]  # fmt: skip


def select(records: Sequence[Record], pattern: str | None, job: str | None) -> list[Record]:
    """Return the records whose name matches a glob or contains a text, and whose job contains a text."""
    if pattern is not None and not re.search(r"[*?\[]", pattern):
        pattern = f"*{pattern}*"
    return [
        record
        for record in records
        if (pattern is None or fnmatch.fnmatchcase(record.name.lower(), pattern.lower()))
        and (job is None or job.lower() in record.job.lower())
    ]


def is_downloaded(record: Record) -> bool:
    """Return True if the weights are on this machine, under the name of the cache."""
    return bool(record.file) and Path(record.file).is_file()
