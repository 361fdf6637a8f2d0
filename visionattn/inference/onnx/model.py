"""Run an exported model with ONNX Runtime, in place of the PyTorch model behind a `Predictor`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from visionattn.errors import BackendError, ConfigError, DataError, require, summary
from visionattn.inference.export.metadata import read_metadata
from visionattn.inference.export.preprocessing import apply_steps

__all__ = ["PROVIDERS", "Geometry", "OnnxModel", "RawOutput"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "directml": "DmlExecutionProvider", "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider", "xnnpack": "XnnpackExecutionProvider",
}  # fmt: skip
"""Short names of the execution providers of ONNX Runtime."""


class RawOutput(dict):
    """The output of a model for one image: its entries are attributes, as of a data sample of mmengine."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass(frozen=True)
class Geometry:
    """Sizes of one image as (height, width).

    Attributes:
        image: the image that was given.
        resized: after the steps of the test pipeline.
        padded: the input of the program, padded to the multiples that the model needs.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


class OnnxModel:
    """An exported file, with the interface of `visionattn.inference.job.TrainedModel`.

    Args:
        path: an ``.onnx`` file of ``visionattn export``.
        providers: execution providers by name, in order of preference: those of ONNX Runtime, or short names such as
            ``"cuda"``; None is the CPU.
        threads: number of threads of an operator; None lets ONNX Runtime choose.

    Attributes:
        about: the metadata of the file.
        meta: shorter and longer side of the images that the model was trained on, if known, as ``image_size``.
        providers: the execution providers in use.

    Raises:
        DataError: the file cannot be read, or has no metadata.
        ConfigError: a provider is unknown or not available, or the test pipeline cannot be repeated.
        MissingDependencyError: onnxruntime is not installed.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        path = Path(path).expanduser()
        if path.suffix != ".onnx":
            raise ConfigError(f"`onnx` must be a file that ends in .onnx, got {path}")
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # warnings about initializers are for developers
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = _providers(runtime, providers)
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # of the protobuf parser, or of a provider
            raise DataError(f"{path}: ONNX Runtime cannot load it ({summary(error)})") from error
        self.about = read_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))
        if step := self.about.get("unsupported_step"):
            raise ConfigError(f"{path}: its test pipeline has the step {step}, which needs OpenMMLab")
        self.path, self.providers = path, self.session.get_providers()
        self.task = str(self.about["task"])
        self.classes = tuple(str(name) for name in self.about["classes"])
        self.meta = {"image_size": self.about["image_size"]}
        self.palette = [tuple(color) for color in self.about.get("palette") or ()] or None
        self.category_ids = tuple(self.about.get("category_ids") or ()) or None
        self.model = _namespace(self.about["model"])
        self.outputs = [value.name for value in self.session.get_outputs()]
        if missing := set(self.about["outputs"]) - set(self.outputs):
            raise DataError(f"{path}: has no output {sorted(missing)[0]!r}, which its metadata list")
        self.shape = self.session.get_inputs()[0].shape
        self.dtype = np.uint8 if self.about.get("dtype") == "uint8" else np.float32
        iou = self.about["decoding"].get("nms_iou")
        nms = {} if iou is None else {"nms": {"type": "nms", "iou_threshold": iou}}
        self.cfg = {
            "model": {"test_cfg": nms, **_as_config(self.about["model"])},
            "test_dataloader": {"dataset": {"pipeline": self.about["pipeline"] or self.about["resize"]}},
        }

    def run(self, samples: Sequence[dict[str, Any]], scale: float = 1.0) -> list[Any]:
        """Run the program on one batch of images of one size.

        Args:
            samples: ``img`` is BGR uint8 ``[H, W, 3]``.
            scale: factor on the size that the images are resized to.

        Returns:
            One raw output per sample, which the job decodes.
        """
        if scale != 1 and self.about["resize"]:
            raise ConfigError(f"`scales` has no effect on {self.path}, which resizes the images itself")
        steps, images = self.about["pipeline"], [sample["img"] for sample in samples]
        return self.predict([apply_steps(image, steps, scale) for image in images], [i.shape[:2] for i in images])

    def predict(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Any]:
        """Run the program on images after the steps of the test pipeline.

        Args:
            images: images of one size, BGR ``[H, W, 3]`` with values in 0..255.
            sizes: (height, width) of each original image, to which the outputs refer.

        Returns:
            One raw output per image, which the job decodes.
        """
        from visionattn.inference.job import job_by_name

        job, found = job_by_name(self.task), []
        prepared = [self._fitted(image, size) for image, size in zip(images, sizes, strict=True)]
        fixed = self.shape[0] if isinstance(self.shape[0], int) else None
        for start in range(0, len(prepared), fixed or len(prepared)):
            part = prepared[start : start + (fixed or len(prepared))]
            batch = np.stack([image for image, _ in part])
            if fixed and len(part) < fixed:
                batch = np.concatenate([batch, np.repeat(batch[:1], fixed - len(part), axis=0)])
            outputs = self.infer(batch)
            for row, (_, geometry) in enumerate(part):
                one = {name: values[row] for name, values in outputs.items()}
                found.append(job.restored(one, self.about["decoding"], geometry))
        return found

    def infer(self, batch: np.ndarray, **thresholds: float) -> dict[str, np.ndarray]:
        """Return the outputs of the program by name.

        Args:
            batch: RGB images in 0..255, ``[B, 3, H, W]``.
            **thresholds: values in place of those in the file.

        Raises:
            ConfigError: a threshold is unknown.
            BackendError: the program does not accept the images.
        """
        known = [value.name for value in self.session.get_overridable_initializers()]
        if unknown := set(thresholds) - set(known):
            raise ConfigError(f"`{sorted(unknown)[0]}` is no threshold of {self.path}; it has: {', '.join(known)}")
        inputs = {"image": np.ascontiguousarray(batch, self.dtype)}
        inputs |= {name: np.asarray(value, np.float32) for name, value in thresholds.items()}
        try:
            return dict(zip(self.outputs, self.session.run(None, inputs), strict=True))
        except Exception as error:  # ONNX Runtime has one class of errors for each kind
            if "llocat" in str(error) and "memory" in str(error):
                raise MemoryError(str(error)) from error
            raise BackendError(f"{self.path}: cannot process {list(batch.shape)} ({summary(error)})") from error

    def use_amp(self) -> None:
        """Refuse: the precision of a file is fixed."""
        raise ConfigError("`amp` does not apply to exported files; visionattn export --half writes one of float16")

    def batch_of(self, image: np.ndarray) -> np.ndarray:
        """Return an image after the test pipeline, BGR ``[H, W, 3]``, as a batch for `infer`, ``[B, 3, h, w]``."""
        pixels = self._fitted(image, image.shape[:2])[0]
        return np.repeat(pixels[None], self.shape[0] if isinstance(self.shape[0], int) else 1, axis=0)

    def _fitted(self, resized: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Geometry]:
        """Return a resized image as the program takes it, ``[3, H, W]``, and its sizes."""
        height, width = resized.shape[:2]
        limits = [side if isinstance(side, int) else None for side in self.shape[2:]]
        if None not in limits and (height, width) != tuple(limits):
            factor = min(limits[0] / height, limits[1] / width, 1.0)
            if factor < 1:
                step = {"type": "Resize", "scale_factor": factor}
                resized = apply_steps(resized, [step])[: limits[0], : limits[1]]
                height, width = resized.shape[:2]
        pixels = resized[..., ::-1].transpose(2, 0, 1)
        divisor = int(self.about.get("size_divisor") or 1)
        if None not in limits and (height, width) != tuple(limits):
            mean = np.array(self.about.get("mean") or [0.0] * 3, np.float32)[:, None, None]
            canvas = np.broadcast_to(mean, (3, *limits)).copy()
            canvas[:, :height, :width] = pixels
            pixels = canvas.round() if self.dtype == np.uint8 else canvas
        padded = tuple(-(-side // divisor) * divisor for side in pixels.shape[1:])
        return np.ascontiguousarray(pixels, self.dtype), Geometry(size, (height, width), padded)


def _providers(runtime: Any, wanted: Sequence[str] | None) -> list[str]:
    available = runtime.get_available_providers()
    found = []
    for name in wanted or ["cpu"]:
        full = PROVIDERS.get(name.lower(), name)
        if full not in available:
            short = [key for key, value in PROVIDERS.items() if value in available]
            others = [value for value in available if value not in PROVIDERS.values()]
            raise ConfigError(
                f"`provider` {name!r} is not available in this installation of onnxruntime; it has: "
                f"{', '.join(short + others)}"
            )
        found.append(full)
    return found


def _namespace(value: Any) -> Any:
    if isinstance(value, Mapping):
        return SimpleNamespace(**{key: _namespace(entry) for key, entry in value.items()})
    return value


def _as_config(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {"test_cfg": entry["test_cfg"]}
        for key, entry in value.items()
        if isinstance(entry, Mapping) and "test_cfg" in entry
    }
