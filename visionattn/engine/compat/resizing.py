"""Images that are resized with their aspect ratio keep at least one pixel on each side."""

import sys
from collections.abc import Sequence

__all__ = ["install", "scale_size"]


def scale_size(size: Sequence[int], scale: float | Sequence[float]) -> tuple[int, int]:
    """Return a size multiplied by a factor, or by one for each side, and rounded; at least 1.

    ``_scale_size`` of mmcv rounds the shorter side of a long strip to 0, which OpenCV rejects.
    """
    factors = (scale, scale) if isinstance(scale, (int, float)) else scale
    width, height = (max(1, int(side * float(factor) + 0.5)) for side, factor in zip(size, factors, strict=True))
    return width, height


def install() -> None:
    """Use `scale_size` in ``imrescale`` and ``Resize`` of mmcv and mmdet. Repeated calls do nothing."""
    import mmcv.image.geometric
    import mmcv.transforms.processing

    later = sys.modules.get("mmdet.datasets.transforms.transforms")  # copies the function when it is imported
    for module in (mmcv.image.geometric, mmcv.transforms.processing, later):
        if module is not None:
            module._scale_size = scale_size
