"""The published models that this package can use: addresses, scores and licenses, as their authors state them.

The table is ``catalog.csv``; what all models of one publication have in common is in `FAMILIES`.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from visionattn.io.links import link_note

__all__ = ["FAMILIES", "Family", "PublishedModel", "published_models"]

_NAMES = "names and shapes of the parameters; the file was not available here, so its scores were not measured"


@dataclass(frozen=True)
class Family:
    """What the models of one publication have in common.

    Attributes:
        paper: address of the paper.
        repository: address of the authors' code.
        code_license: license of the code.
        weights_license: license of the weights, if it is stated.
        addresses: starts of the addresses of the files, mirrors in the order in which they are tried.
        checked: what was checked with this package.
    """

    paper: str
    repository: str
    code_license: str
    addresses: tuple[str, ...]
    weights_license: str = "not stated"
    checked: str = _NAMES


_SHI = ("https://shi-labs.com/projects/",)
_NAT_CODE = "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer"

FAMILIES = {
    "nat": Family("https://arxiv.org/abs/2204.07143", _NAT_CODE, "MIT", _SHI),
    "dinat": Family("https://arxiv.org/abs/2209.15001", _NAT_CODE, "MIT", _SHI),
    "davit": Family(
        "https://arxiv.org/abs/2204.03645",
        "https://github.com/dingmyu/davit",
        "MIT",
        ("https://connecthkuhk-my.sharepoint.com/:u:/g/personal/u3007305_connect_hku_hk/",),
    ),
    "scatterformer": Family(
        "https://arxiv.org/abs/2401.00912",
        "https://github.com/skyhehe123/ScatterFormer",
        "Apache-2.0",
        ("https://drive.google.com/open?id=",),
    ),
    "sat": Family(
        "https://arxiv.org/abs/2303.10438",
        "https://github.com/wpy1999/SAT",
        "not stated",
        ("https://drive.google.com/drive/folders/",),
        weights_license="research use only",
    ),
    "nfa-vit": Family(
        "https://arxiv.org/abs/2504.11922",
        "https://github.com/clpbc/BR-Gen",
        "CC BY 4.0",
        ("https://pan.baidu.com/s/",),  # the page of the weights in the repository states the password
    ),
    "catanet": Family(
        "https://arxiv.org/abs/2503.06896",
        "https://github.com/EquationWalker/CATANet",
        "Apache-2.0",
        ("https://github.com/EquationWalker/CATANet/releases/download/v0.0/",),
    ),
}


@dataclass(frozen=True)
class PublishedModel:
    """A trained model that its authors published.

    Attributes:
        name: unique name, ``<method>_<backbone>_<data>``, with the schedule if there are several.
        family: key of `FAMILIES`.
        job: such as ``"instance segmentation"``.
        data: name of the data it was trained and tested on.
        scores: scores by metric, as published, not measured here.
        parameters: number of parameters of the model that the config builds; None without a config.
        config: name of the config in this package that builds it; None if there is none.
        urls: addresses of the file, in the order in which they are tried.
        sha256: hexadecimal digest, if the authors state it.
        unusable: why this package cannot run it; empty if it can.
    """

    name: str
    family: str
    job: str
    data: str
    scores: dict[str, float]
    parameters: int | None
    config: str | None
    urls: tuple[str, ...]
    sha256: str | None = None
    unusable: str = ""

    @property
    def about(self) -> Family:
        """What the models of its publication have in common."""
        return FAMILIES[self.family]

    @property
    def file(self) -> str:
        """Name of its file in the cache."""
        return f"{self.name}.pth"

    @property
    def note(self) -> str:
        """Why it cannot be used without further steps, or an empty text."""
        return self.unusable or link_note(self.urls[0])


@cache
def published_models() -> dict[str, PublishedModel]:
    """Return the published models by name, in the order of the table."""
    with Path(__file__).with_name("catalog.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    return {row["name"]: _model({key: value.strip() for key, value in row.items()}) for row in rows}


def _model(row: dict[str, str]) -> PublishedModel:
    scores = (part.rsplit(" ", 1) for part in row["scores"].split("; ") if part)
    return PublishedModel(
        name=row["name"],
        family=row["family"],
        job=row["job"],
        data=row["data"],
        scores={metric: float(value) for metric, value in scores},
        parameters=int(row["parameters"]) if row["parameters"] else None,
        config=row["config"] or None,
        urls=tuple(start + row["file"] for start in FAMILIES[row["family"]].addresses),
        sha256=row["sha256"] or None,
        unusable=row["unusable"],
    )
