"""Evaluate an exported file on the test data of a config, in place of the PyTorch model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.errors import ConfigError
from visionattn.inference.onnx.model import OnnxModel
from visionattn.io.configs import PREFIX, find_config

__all__ = ["OnnxProgram", "config_of"]

KEPT = 8


class OnnxProgram:
    """An exported file for `visionattn.engine.train.testing.test`.

    Args:
        path, providers, threads: see `OnnxModel`.

    Attributes:
        model: the file.
        images: up to `KEPT` images of the test data after the test pipeline, BGR ``[H, W, 3]``.

    Raises:
        ConfigError: the program resizes the images itself.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        self.model = OnnxModel(path, providers, threads)
        self.path, self.classes = self.model.path, self.model.classes
        if self.model.about["resize"]:
            raise ConfigError(f"{self.path}: resizes the images itself; export it without `resize` to test it")
        self.images: list[np.ndarray] = []

    def test_step(self, batch: Mapping[str, Any]) -> list["_Sample"]:
        """Predict on images of one size.

        Args:
            batch: ``inputs``, BGR images ``[3, H, W]`` after the test pipeline, and their ``data_samples``.

        Returns:
            The entries of each data sample and its predictions.
        """
        images = [image.numpy().transpose(1, 2, 0) for image in batch["inputs"]]
        self.images += images[: KEPT - len(self.images)]
        samples = [sample.to_dict() for sample in batch["data_samples"]]
        outputs = self.model.predict(images, [tuple(sample["ori_shape"][:2]) for sample in samples])
        return [
            _Sample({**sample, **_tensors(output)}, self.path) for sample, output in zip(samples, outputs, strict=True)
        ]


class _Sample(dict):
    def __init__(self, entries: Mapping[str, Any], path: Path) -> None:
        super().__init__(entries)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.path}: has no output {key!r}, which the metric of the config needs")


def _tensors(value: Any) -> Any:
    """Return the arrays in nested dicts as tensors, as metrics expect them."""
    if isinstance(value, Mapping):
        return {key: _tensors(entry) for key, entry in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def config_of(program: OnnxProgram) -> str:
    """Return the config that a file was exported from.

    Raises:
        ConfigError: it is not one of the package.
    """
    name = Path(str(program.model.about.get("config") or "")).stem
    if not name or not find_config(f"{PREFIX}{name}").is_file():
        raise ConfigError(f"{program.path}: its config {name!r} is not one of the package; give the config")
    return f"{PREFIX}{name}"
