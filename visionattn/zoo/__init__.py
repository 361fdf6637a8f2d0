"""Trained models by name: those in the package, and those that their authors published.

``Predictor.from_pretrained("nuclei")``. Each model of the package is a file ``NAME.safetensors`` with weights in half
precision and the metadata of its training run, and a model card ``NAME.md`` with data, licenses, results and limits.
Its config is one of this package, by name. The published models are in `visionattn.zoo.catalog`; their files are
downloaded to the cache of `visionattn.io.cache`.
"""

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionattn.errors import CheckpointError, ConfigError, MismatchError
from visionattn.io.cache import derived, fetch
from visionattn.io.configs import PREFIX
from visionattn.io.convert import convert_file
from visionattn.io.fetch import sha256_of
from visionattn.io.weights import check_format, read, write_safetensors
from visionattn.zoo.catalog import published_models

__all__ = ["ShippedModel", "find_model", "given_file", "known_names", "model_names", "pack", "resolve", "similar"]

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
    def sample(self) -> Path | None:
        """An image for a first try, or None. The card says where it is from."""
        return next((FOLDER / "samples").glob(f"{self.name}.*"), None)

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata: ``config_name``, ``dataset_meta``, ``image_size``, ``iter``, ``seed``, ``versions``."""
        return read(self.weights)["meta"]

    @property
    def config(self) -> str:
        """Its config, as `visionattn.engine.config.load.load_config` accepts it: always the one of the package."""
        return f"{PREFIX}{self.meta['config_name']}"

    @property
    def summary(self) -> str:
        """The first sentence of the card, in one line."""
        lines = self.card.read_text(encoding="utf-8").split("\n\n")
        return " ".join(lines[1].split())

    @property
    def warning(self) -> str:
        """The first sentence of the section "Limits" of the card in one line, or an empty text."""
        limits = self.card.read_text(encoding="utf-8").partition("\n## Limits\n")[2]
        return re.split(r"(?<=\.)\s", " ".join(limits.split()))[0]


def model_names() -> list[str]:
    """Return the names of the models in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def known_names() -> list[str]:
    """Return the names of all trained models: those in the package, then the published ones."""
    return [*model_names(), *published_models()]


def find_model(name: str) -> ShippedModel:
    """Return a model of the package by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in model_names():
        raise ConfigError(f"`model` {name!r} is not in the package; {similar(name)}")
    return ShippedModel(name, FOLDER / f"{name}.safetensors", FOLDER / f"{name}.md")


def similar(name: str) -> str:
    """Return the end of the message about an unknown name: a similar one, or where to find the names."""
    close = difflib.get_close_matches(name, known_names(), n=1)
    return f"did you mean {close[0]}?" if close else "`visionattn models` lists the models"


def resolve(name: str, weights: str | Path | None = None) -> tuple[str, Path]:
    """Return the config and the weights of a trained model by name, and download the weights if necessary.

    Args:
        name: name of a model of the package or of a published model, see `known_names`.
        weights: the weights as a file, in place of those in the package or in the cache; it is not copied.

    Returns:
        ``(config, file)``: the name of a config of this package, which `load_config` accepts, and a local file.

    Raises:
        ConfigError: there is no model of this name, or this package cannot run it.
        CheckpointError: the file is missing, cannot be downloaded, or is not the one that was downloaded before.
    """
    if name in model_names():
        found = find_model(name)
        return found.config, found.weights if weights is None else _given(weights)
    model = published_models().get(name)
    if model is None:
        raise ConfigError(f"`model` {name!r} is not a known model; {similar(name)}")
    if model.unusable or model.config is None:
        raise ConfigError(f"`model` {name}: cannot be used, since {model.unusable}")
    if weights is None:
        file = fetch(model.urls, model.file, sha256=model.sha256, instead="give it as `weights`")
        return model.config, _readable(file)
    file = _given(weights)
    if model.sha256 and sha256_of(file) != model.sha256:
        warnings.warn(f"{file}: is not the published file of {name}, whose SHA-256 is {model.sha256}", stacklevel=2)
    return model.config, file


@contextmanager
def given_file(name: str | None, weights: str | Path | None) -> Iterator[None]:
    """Say that weights that do not fit, given for a trained model by name, are not those of this model."""
    try:
        yield
    except MismatchError as error:
        if weights is None or name not in known_names():
            raise
        raise MismatchError(error.text, f"It is not a file of {name}") from error


def _readable(file: Path) -> Path:
    """Return a file of the cache, or a converted copy beside it if reading it would require executing code."""
    if file.suffix == ".safetensors":
        return file
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # another format; whoever reads the file says what is wrong with it
        return file
    return derived(file, file.with_suffix(".safetensors"), convert_file) if unsafe else file


def _given(weights: str | Path) -> Path:
    file = Path(weights).expanduser()
    if not file.exists():
        raise CheckpointError(f"`weights` {file}: the file does not exist")
    check_format(file)
    return file


def pack(checkpoint: str | Path, out: str | Path) -> None:
    """Write the weights and the metadata of a training checkpoint in half precision.

    Args:
        checkpoint: a checkpoint of `visionattn.engine.train.train.train`.
        out: the ``.safetensors`` file.
    """
    loaded = read(checkpoint)
    meta: Mapping[str, Any] = loaded["meta"]
    kept = {key: meta[key] for key in ("config_name", "iter", "epoch", "seed", "versions", "image_size") if key in meta}
    info = dict(meta.get("dataset_meta") or {})
    kept["dataset_meta"] = {key: info[key] for key in ("classes", "palette", "category_ids") if key in info}
    write_safetensors(Path(out), loaded["state_dict"], kept)
