"""Exported files whose convolutions and linear layers compute with integers of eight bits."""

import contextlib
import functools
import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from visionattn.errors import BackendError, ConfigError, require, summary
from visionattn.inference.export.preprocessing import apply_steps
from visionattn.inference.onnx.graph import WEIGHTED, restore_metadata, simplified, weighted_nodes
from visionattn.inference.onnx.model import OnnxModel
from visionattn.inference.onnx.sensitivity import by_sensitivity

__all__ = ["Quantizer"]

SENSITIVITY = 2
"""Number of images with which the sensitivity of each layer is measured."""


class Quantizer:
    """Static quantization of an exported file by ONNX Runtime, with scales from calibration images.

    Convolutions and linear layers of backbone, neck and heads are quantized: weights per channel, activations per
    tensor, written as pairs of QuantizeLinear and DequantizeLinear. Normalization, products of activations as in
    attention, and decoding remain in float32. Weights have seven bits, since the instructions of processors without
    VNNI would saturate with eight.

    Args:
        path: the file of ``visionattn export``.
        images: calibration images, BGR uint8 ``[H, W, 3]``; a few dozen that resemble those of the application.

    Attributes:
        count: number of layers that can be quantized.

    Raises:
        ConfigError: there are no images, or no layers that can be quantized.
        DataError: the file cannot be read.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, images: Iterable[np.ndarray]) -> None:
        model = OnnxModel(path)
        steps = model.about["pipeline"]
        self.path, self.inputs = Path(path), [model.batch_of(apply_steps(image, steps)) for image in images]
        if not self.inputs:
            raise ConfigError("`calibrate` has no images; give a few dozen that resemble those of the application")
        require("onnxruntime.quantization", "onnx")
        self._model = simplified(path)
        self.count = len(weighted_nodes(self._model))
        if not self.count:
            raise ConfigError(f"{path}: has no convolutions or linear layers that can be quantized")

    def write(self, out: str | Path, in_float: int = 0) -> None:
        """Write the quantized file.

        Args:
            out: the file.
            in_float: number of layers that remain in float32, the most sensitive ones.

        Raises:
            BackendError: ONNX Runtime cannot quantize the model.
        """
        onnx, quantization = require("onnx", "onnx"), require("onnxruntime.quantization", "onnx")
        inputs, out = iter([{"image": batch} for batch in self.inputs]), str(out)

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(inputs, None)

        layers = self.layers[in_float:] if in_float else [node.name for node in weighted_nodes(self._model)]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        # initializers that are inputs too cause warnings about missed optimizations in every session
        thresholds = list(model.graph.input)[1:]
        del model.graph.input[1:]
        try:
            with _quiet():
                quantization.quantize_static(
                    model, out, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                    activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                    reduce_range=True, op_types_to_quantize=list(WEIGHTED), nodes_to_quantize=layers,
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
                )  # fmt: skip
        except Exception as error:  # the library raises many kinds
            raise BackendError(f"{self.path}: ONNX Runtime cannot quantize it ({summary(error)})") from error
        written = onnx.load(out)
        written.graph.input.extend(thresholds)
        restore_metadata(written, self._model, precision="int8")
        onnx.save(written, out)
        # some versions of ONNX Runtime end the process while they fuse quantized operators
        code = f"import onnxruntime; onnxruntime.InferenceSession({out!r}, providers=['CPUExecutionProvider'])"
        if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
            raise BackendError(f"{self.path}: this version of ONNX Runtime cannot load its quantized file")

    @functools.cached_property
    def layers(self) -> list[str]:
        """The names of the layers that can be quantized, the most sensitive first; see `by_sensitivity`."""
        return by_sensitivity(self._model, self.inputs[:: max(1, len(self.inputs) // SENSITIVITY)][:SENSITIVITY])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice for developers that ONNX Runtime writes to the root logger, and its warnings of NumPy."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.setLevel(level)
