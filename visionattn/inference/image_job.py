"""Base class of the jobs on images: reading, batching, records with COCO categories, training samples."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from visionattn.inference.decoding import category_ids
from visionattn.inference.job import Job, TrainedModel, View
from visionattn.inference.options import ExportOptions, Options
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tile_size import resized_side
from visionattn.io.images import check_size, read_image, to_bgr
from visionattn.io.inputs import Source, find_inputs, iterate_inputs

__all__ = ["ImageJob", "TensorMode"]


class ImageJob(Job):
    """A job on images, and on videos frame by frame; its predictions are `Prediction` objects.

    Attributes:
        dataset_colors: draw with the colors that the dataset defines.
        category_ids: the id of each class in COCO files, or None for 1, 2, 3, ...
    """

    dataset_colors: ClassVar[bool] = False
    record_types: ClassVar[Mapping[str, Any]] = {
        "detections": [
            {"category_id": int, "bbox": [float], "score": float, "segmentation": {"size": [int], "counts": str}}
        ]
    }

    def __init__(self, model: TrainedModel, options: Options, own: Any = None) -> None:
        super().__init__(model, options, own)
        self.category_ids = category_ids(model.cfg, self.classes) or model.category_ids

    def palette(self) -> tuple[tuple[int, int, int], ...] | None:
        """Return the RGB color of each class that the dataset defines; None for the default colors."""
        colors = self.model.palette if self.dataset_colors else None
        return tuple(map(tuple, colors)) if colors and len(colors) == len(self.classes) else None

    @classmethod
    def find(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
        """Return images and videos; see `visionattn.io.inputs.find_inputs`."""
        return find_inputs(inputs, exclude=exclude)

    @classmethod
    def iterate(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> Iterator[Source]:
        """Yield images, videos and tar archives in the order of `find`, without a list of all of them."""
        yield from iterate_inputs(inputs, exclude=exclude)

    def read(self, source: Any) -> np.ndarray:
        """Return an image as BGR uint8 ``[H, W, 3]``.

        Args:
            source: a path, a PIL image, or a uint8 array: ``[H, W, 3]`` in the order of the option ``channel_order``,
                or gray ``[H, W]``.

        Raises:
            DataError: the file cannot be read, or the image is too large.
        """
        if isinstance(source, (str, Path)):
            return read_image(source, self.options.max_pixels)
        if not isinstance(source, np.ndarray):
            if not hasattr(source, "getexif"):
                raise TypeError(f"an image must be a path, an array or a PIL image, got {type(source).__name__}")
            check_size("image", *source.size, self.options.max_pixels)
            return to_bgr(source)
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(
                f"an image array must be uint8 [H, W, 3] or [H, W], got {source.dtype} {list(source.shape)}"
            )
        if source.size == 0:
            raise ValueError(f"an image array must not be empty, got shape {list(source.shape)}")
        if source.ndim == 3 and source.shape[2] == 3:
            return np.ascontiguousarray(source[..., ::-1]) if self.options.channel_order == "rgb" else source
        return np.repeat(source.reshape(*source.shape[:2], 1), 3, axis=2)

    def sample(self, item: np.ndarray, view: View = View()) -> dict[str, Any]:  # noqa: B008  View is immutable
        """Return the input of a test pipeline that starts from an array."""
        return {"img": np.ascontiguousarray(item[:, ::-1] if view.mirrored else item), "img_id": 0}

    def batch_key(self, item: np.ndarray) -> tuple[int, ...]:
        """Return the shape of the image: only images of the same size share a batch, as padding changes predictions."""
        return item.shape

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory per pixel: copies of the image, and features if it is not resized."""
        return 40 + (400 if resized_side(self.model.cfg) is None else 0)

    def describe(self, item: np.ndarray) -> str:
        """Return a phrase with the size of the image, such as "an image of 640x480"."""
        return f"an image of {item.shape[1]}x{item.shape[0]}"

    def decode(self, output: Any, item: np.ndarray) -> Prediction:
        """Return the prediction for one image."""
        return self.prediction(output, item.shape[:2])

    @abstractmethod
    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the prediction for a raw output and the (height, width) of its image."""

    def common(self) -> dict[str, Any]:
        """Return the fields of a `Prediction` that do not depend on the image."""
        return {"classes": self.classes, "category_ids": self.category_ids, "colors": self.palette()}

    def attach(self, prediction: Prediction, item: np.ndarray) -> Prediction:
        """Keep the image, so that ``prediction.draw()`` needs no argument."""
        return replace(prediction, image=item)

    def record(self, prediction: Prediction, index: int) -> dict[str, Any]:
        """Return the detections as COCO results."""
        return {"detections": prediction.to_coco(index)}

    def describe_model(self) -> dict[str, Any]:
        """Return the categories with their COCO ids."""
        ids = self.category_ids or range(1, len(self.classes) + 1)
        return {"categories": [{"id": i, "name": name} for i, name in zip(ids, self.classes, strict=True)]}

    def colors(self) -> dict[int, tuple[int, int, int]]:
        """Return the color (blue, green, red) of each label in overlays."""
        from visionattn.inference.draw import map_colors

        return map_colors(self.classes, self.palette())

    @classmethod
    def draw_samples(cls, config: Any, split: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the images after all transforms, with their annotations drawn on them."""
        from visionattn.engine.samples import read_samples

        for sample in read_samples(config, split, number):
            annotated = Prediction(
                sample.image.shape[:2],
                sample.classes,
                boxes=sample.boxes,
                scores=np.full(len(sample.boxes), np.nan, np.float32),
                labels=sample.labels,
                masks=None if sample.masks is None else InstanceMasks.from_dense(sample.masks),
                semantic=sample.semantic,
                colors=sample.colors,
            )
            yield sample.name, annotated.draw(sample.image)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> nn.Module:
        """Return the model without postprocessing; its outputs are those of the head."""
        return TensorMode(model)


class TensorMode(nn.Module):
    """An mmengine model from normalized images to raw outputs.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Any) -> Any:
        """Return the outputs of ``model(image, mode="tensor")``."""
        return self.model(image, mode="tensor")
