"""The module object that replaces `mmcv._ext`."""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from visionattn.errors import BackendError

from . import border, boxes, carafe, deform, deform_roi, focal, masks, ms_deform, nms, polygons, roi, sync_bn

__all__ = ["NAME", "OPERATORS", "build"]

NAME = "mmcv._ext"

_FILES = (border, boxes, carafe, deform, deform_roi, focal, masks, ms_deform, nms, polygons, roi, sync_bn)
OPERATORS: dict[str, Callable] = {name: getattr(file, name) for file in _FILES for name in file.__all__}


def _not_compiled() -> str:
    return "none: operators of visionattn on torchvision and PyTorch"


def _missing(name: str) -> Callable:
    """Return a function that raises an error, since mmcv accesses all operators on import but calls few of them."""
    if name.startswith("_"):  # accessed by the import system and by inspection tools
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

    def unavailable(*args, **kwargs):
        raise BackendError(
            f"the mmcv operator {name} requires compiled mmcv; "
            "replace mmcv-lite by an mmcv 2.1 wheel that was compiled for this PyTorch"
        )

    unavailable.__name__ = unavailable.__qualname__ = name
    return unavailable


def build() -> ModuleType:
    """Create a module object with all operators in `OPERATORS`; other operators raise an error when called."""
    module = ModuleType(NAME, "Replacement for mmcv's compiled operators; see visionattn.engine.compat.ops.")
    module.__spec__ = ModuleSpec(NAME, loader=None, origin="visionattn.engine.compat.ops")
    module.__dict__.update(OPERATORS)
    module.get_compiler_version = _not_compiled
    module.get_compiling_cuda_version = _not_compiled
    module.__getattr__ = _missing
    return module
