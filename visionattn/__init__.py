"""Efficient-attention vision backbones, registered with timm, and dense prediction on top of them.

``import visionattn`` registers the operators with PyTorch and the backbones with timm, each as soon as PyTorch or timm
has been imported, and imports neither by itself. So ``visionattn --help`` starts at once, and the kernels work without
timm. OpenMMLab, OpenCV, albumentations and Triton are imported by the parts that use them, when they are used.
"""

import importlib
from typing import Any

from visionattn._register import after_import
from visionattn._version import __version__ as __version__

PARTS = ("backbones", "kernels")
"""Packages that are imported on first use as attributes of this one."""

after_import("torch", lambda: importlib.import_module("visionattn.kernels"))
after_import("timm", lambda: importlib.import_module("visionattn.backbones"))


def __getattr__(name: str) -> Any:
    """Import one of `PARTS`."""
    if name in PARTS:
        return importlib.import_module(f"visionattn.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
