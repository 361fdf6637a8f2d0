"""Training data is read with the decoder of inference."""

from typing import Any

import mmcv.transforms
import numpy as np
from mmengine.registry import TRANSFORMS

from visionattn.errors import DataError
from visionattn.io.images import read_image

__all__ = ["LoadImageFromFile", "install"]


class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """``LoadImageFromFile`` of mmcv that reads color images with `visionattn.io.images.read_image`, as inference does.

    With options that ask for something else (``color_type``, ``imdecode_backend``, ``backend_args``), and for images
    that are not local files, it is the class of mmcv. `install` registers it under the name of that class.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Read ``img_path`` into ``img``, and set ``img_shape`` and ``ori_shape``."""
        path = str(results["img_path"])
        default = (self.color_type, self.imdecode_backend, self.file_client_args) == ("color", "cv2", None)
        local = self.backend_args is None or self.backend_args.get("backend") == "local"
        if not default or not local or "://" in path:
            return super().transform(results)
        try:
            image = read_image(path)
        except DataError:
            if self.ignore_empty:
                return None
            raise
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def install() -> None:
    """Register `LoadImageFromFile` in place of the class of mmcv. Calling it again has no further effect."""
    TRANSFORMS.register_module(name="LoadImageFromFile", module=LoadImageFromFile, force=True)
