"""The module object that stands in for `mmcv._ext`."""

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
    """What the module gives for a name it lacks; mmcv asks for every name on import and calls few."""
    if name.startswith("_"):  # the import system and inspection tools probe for these
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

    def unavailable(*args, **kwargs):
        raise BackendError(
            f"the mmcv operator {name} is not among those visionattn provides without compiled mmcv; "
            "install an mmcv 2.1 wheel compiled for this PyTorch in place of mmcv-lite"
        )

    unavailable.__name__ = unavailable.__qualname__ = name
    return unavailable


def build() -> ModuleType:
    """A new module object with every operator of `OPERATORS`; any other name raises when called."""
    module = ModuleType(NAME, "Stand-in for mmcv's compiled operators; see visionattn.engine.compat.ops.")
    module.__spec__ = ModuleSpec(NAME, loader=None, origin="visionattn.engine.compat.ops")
    module.__dict__.update(OPERATORS)
    module.get_compiler_version = _not_compiled
    module.get_compiling_cuda_version = _not_compiled
    module.__getattr__ = _missing
    return module
