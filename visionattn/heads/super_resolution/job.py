"""The job of super-resolution."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from visionattn.errors import ConfigError
from visionattn.heads.super_resolution.export import EnlargedOutputs, restore_enlarged
from visionattn.heads.super_resolution.imresize import to_uint8
from visionattn.heads.super_resolution.merging import EIGHT, BlendedImage, Symmetry
from visionattn.heads.super_resolution.results import EnlargedImage
from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import Merger, RunTotals, TrainedModel, View
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.inference.options import ExportOptions, Options
from visionattn.inference.tiling import Tile
from visionattn.io.console import count_of
from visionattn.io.images import open_image

__all__ = ["JOBS", "SuperResolutionJob"]

BYTES = (5000, 250)
"""Main memory in bytes per pixel of the input, and per pixel of the enlarged image, of the published model."""


class SuperResolutionJob(ImageJob):
    """Enlargement of images. The result of ``NAME.jpg`` is the file ``NAME.png``.

    Colors are 8-bit; images with 16 bits are reduced to 8, gray images get three equal channels, and transparency is
    dropped with a warning. `Options.tta` averages the eight flips and transposes of the image.
    """

    name = "super_resolution"
    tiles = views = True
    overlay_is_result = True
    record_types: ClassVar[Mapping[str, Any]] = {"scale": int, "enlarged_width": int, "enlarged_height": int}

    def __init__(self, model: TrainedModel, options: Options, own: Any = None) -> None:
        super().__init__(model, options, own)
        if options.scales != (1.0,):
            raise ConfigError("`scales` is not supported for super_resolution models: the factor is that of the model")

    @property
    def scale(self) -> int:
        """The factor of the enlargement."""
        return int(self.model.model.scale)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> EnlargedOutputs:
        """Return the final outputs."""
        return EnlargedOutputs(model, options.resize)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_enlarged(outputs, about, geometry)

    def read(self, source: Any) -> np.ndarray:
        """Return an image as BGR uint8 ``[H, W, 3]``, see `ImageJob.read`."""
        image = super().read(source)
        if isinstance(source, (str, Path)):
            with open_image(source) as file:
                transparent = file.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in file.info
            if transparent:
                warnings.warn("transparency is dropped: enlarged images are opaque", stacklevel=2)
        return image

    def test_views(self) -> list[View]:
        """Return the eight flips and transposes with `Options.tta`, else the image itself."""
        return list(EIGHT if self.options.tta else EIGHT[:1])

    def sample(self, item: np.ndarray, view: View = EIGHT[0]) -> dict[str, Any]:
        """Return the input of a test pipeline that starts from an array."""
        assert isinstance(view, Symmetry)
        return {"img": np.ascontiguousarray(view.apply(item)), "img_id": 0}

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory per pixel of the input."""
        return BYTES[0] + BYTES[1] * self.scale**2

    def prediction(self, output: Any, size: tuple[int, int]) -> EnlargedImage:
        """Return the enlarged image."""
        return EnlargedImage(to_uint8(pixels_of(output)), self.scale)

    def attach(self, prediction: EnlargedImage, item: np.ndarray) -> EnlargedImage:
        """Return the prediction: its image is the enlarged one."""
        return prediction

    def merger(self, item: np.ndarray, views: Sequence[Symmetry], overlap: int) -> "EnlargedMerger":
        """Return a merger by weighted means."""
        return EnlargedMerger(BlendedImage(item.shape[:2], overlap, self.scale, views), self.scale)

    def overlay_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the enlarged image."""
        return self.scale * height, self.scale * width

    def record(self, prediction: EnlargedImage, index: int) -> dict[str, Any]:
        """Return the factor and the size of the enlarged image."""
        height, width = prediction.size
        return {"scale": prediction.scale, "enlarged_width": width, "enlarged_height": height}

    def count(self, prediction: EnlargedImage) -> Counter:
        """Return the number of pixels of the enlarged image."""
        return Counter({"pixels": prediction.size[0] * prediction.size[1]})

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the size of the enlarged image."""
        return [f"enlarged {record['scale']} times to {record['enlarged_width']}x{record['enlarged_height']}"]

    def summary(self, tally: RunTotals) -> str:
        """Return how many images were enlarged."""
        pixels = tally.found["pixels"] / 1e6
        return f"enlarged {self.scale} times: {count_of(tally.inputs, 'image')}, {pixels:.1f} megapixels"

    def legend(self, tally: RunTotals) -> dict[str, str]:
        """Return an empty legend: there are no classes."""
        return {}

    def describe_model(self) -> dict[str, Any]:
        """Return the factor of the enlargement."""
        return {"scale": self.scale}


class EnlargedMerger(Merger):
    """Blends the enlarged tiles and averages their views.

    Args:
        blended: the image that they are added to.
        scale: factor of the enlargement.
    """

    def __init__(self, blended: BlendedImage, scale: int) -> None:
        self.blended, self.scale = blended, scale

    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add one view of one tile."""
        assert isinstance(view, Symmetry)
        self.blended.add(tile, view, pixels_of(output).clip(0, 255))

    def result(self) -> EnlargedImage:
        """Return the enlarged image."""
        return EnlargedImage(self.blended.result(), self.scale)


def pixels_of(output: Any) -> np.ndarray:
    """Return the enlarged image of a raw output as BGR float32 ``[H, W, 3]`` in 0..255, not clipped."""
    image = output.pred_image.float().cpu().numpy()
    return 255 * image.transpose(1, 2, 0)[..., ::-1]


JOBS = (SuperResolutionJob,)
