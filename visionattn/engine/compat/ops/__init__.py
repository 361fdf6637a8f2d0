"""Operators that mmdet and mmseg expect from mmcv's compiled extension, on torchvision and plain PyTorch.

mmcv-lite has all of mmcv's Python and none of its compiled operators (`mmcv._ext`), without which neither
mmdet nor mmseg can be imported. `install` puts a module with the same names, argument orders and in-place
outputs in its place, unless a compiled one is there. All of it runs on CPU and CUDA, forward and backward;
half types are computed in float32. Provided:

- boxes: nms, softnms, nms_match, nms_rotated, nms_quadri, bbox_overlaps, box_iou_rotated, box_iou_quadri
- features of boxes: roi_align (average and maximum), roi_pool, deform_roi_pool, border_align
- convolutions: deform_conv, modulated_deform_conv, masked_im2col and col2im
- attention and upsampling: ms_deform_attn, carafe, carafe_naive, psamask
- losses and normalisation: sigmoid and softmax focal loss, the steps of MMSyncBN

Any other operator raises `BackendError` with its name when called.
"""

import importlib
import sys

from visionattn.errors import BackendError, require

__all__ = ["install", "is_compiled"]

_NAME = "mmcv._ext"
_ORIGIN = "visionattn.engine.compat.ops"


def _load() -> bool:
    """Import `mmcv._ext`, whatever provides it; False where nothing does."""
    require("mmcv")
    try:
        importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name == _NAME:
            return False
        raise
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise BackendError(
            f"the installed mmcv has compiled operators that cannot be loaded ({reason}); install an mmcv "
            "wheel for this PyTorch, or replace it: pip uninstall mmcv && pip install mmcv-lite==2.1.0"
        ) from error
    return True


def is_compiled() -> bool:
    """Whether mmcv's operators are compiled ones; False with the stand-in, or with neither."""
    if not _load():
        return False
    spec = getattr(sys.modules[_NAME], "__spec__", None)
    return getattr(spec, "origin", None) != _ORIGIN


def install() -> bool:
    """Make `mmcv.ops` importable: put the stand-in in place of `mmcv._ext` where no compiled one exists.

    Call it before mmdet, mmseg or `mmcv.ops` is imported. Calling it again changes nothing.

    Returns:
        Whether the stand-in is in use; False when a compiled `mmcv._ext` was found and left alone.

    Raises:
        MissingDependencyError: mmcv or torchvision is not installed.
        BackendError: mmcv's compiled operators, or torchvision's, do not fit the installed PyTorch.
    """
    if _load():
        return not is_compiled()
    require("torchvision")
    try:
        require("torchvision.ops")
    except RuntimeError as error:  # torchvision registers fakes for operators that then do not exist
        raise BackendError(
            f"torchvision does not fit the installed PyTorch ({str(error).splitlines()[0]}); "
            "install both from one index: pip install --upgrade torch torchvision"
        ) from error
    from .module import build

    module = build()
    sys.modules[_NAME] = module
    sys.modules["mmcv"]._ext = module
    return True
