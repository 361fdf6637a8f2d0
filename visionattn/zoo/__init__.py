"""Trained models in the package, ready for use without training: ``Predictor.from_pretrained("nuclei")``.

Each model is a file ``NAME.safetensors`` with weights in half precision and the metadata of its training run, and a
model card ``NAME.md`` with data, licenses, results and limits. Its config is one of this package, by name.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.errors import ConfigError
from visionattn.io.weights import read, write_safetensors

__all__ = ["ShippedModel", "find_model", "model_names", "pack"]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ShippedModel:
    """A trained model in the package.

    Attributes:
        name: such as ``"nuclei"``.
        weights: the ``.safetensors`` file.
        card: the model card, a Markdown file.
    """

    name: str
    weights: Path
    card: Path

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata: ``config_name``, ``dataset_meta``, ``iter``, ``seed``, ``versions``."""
        return read(self.weights)["meta"]

    @property
    def config(self) -> str:
        """Name of its config, which `visionattn.engine.config.load.load_config` accepts."""
        return str(self.meta["config_name"])

    @property
    def summary(self) -> str:
        """The first sentence of the card, in one line."""
        lines = self.card.read_text(encoding="utf-8").split("\n\n")
        return " ".join(lines[1].split())


def model_names() -> list[str]:
    """Return the names of the models in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find_model(name: str) -> ShippedModel:
    """Return a model of the package by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in model_names():
        close = difflib.get_close_matches(name, model_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"the models are {', '.join(model_names())}"
        raise ConfigError(f"`model` {name!r} is not in the package; {hint}")
    return ShippedModel(name, FOLDER / f"{name}.safetensors", FOLDER / f"{name}.md")


def pack(checkpoint: str | Path, out: str | Path) -> None:
    """Write the weights and the metadata of a training checkpoint in half precision.

    Args:
        checkpoint: a checkpoint of `visionattn.engine.train.train.train`.
        out: the ``.safetensors`` file.
    """
    loaded = read(checkpoint)
    meta: Mapping[str, Any] = loaded["meta"]
    kept = {key: meta[key] for key in ("config_name", "iter", "epoch", "seed", "versions") if key in meta}
    info = dict(meta.get("dataset_meta") or {})
    kept["dataset_meta"] = {key: info[key] for key in ("classes", "palette", "category_ids") if key in info}
    write_safetensors(Path(out), loaded["state_dict"], kept)
