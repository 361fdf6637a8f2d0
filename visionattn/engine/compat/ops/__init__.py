"""Replacements for the operators in mmcv's compiled extension, based on torchvision and PyTorch.

mmcv-lite has the Python code of mmcv without the compiled operators (`mmcv._ext`), and neither mmdet nor mmseg can be
imported without them. `install` supplies a module with the same function names, argument orders and in-place outputs,
unless a compiled module is installed. All operators run on CPU and CUDA, forward and backward; half-precision inputs
are computed in float32. The operators are:

- boxes: nms, softnms, nms_match, nms_rotated, nms_quadri, bbox_overlaps, box_iou_rotated, box_iou_quadri
- pooling: roi_align (average and maximum), roi_pool, deform_roi_pool, border_align
- convolutions: deform_conv, modulated_deform_conv, masked_im2col and masked_col2im
- attention and upsampling: ms_deform_attn, carafe, carafe_naive, psamask
- losses and normalization: sigmoid and softmax focal loss, the steps of MMSyncBN

Any other operator raises `BackendError` with its name when it is called.
"""

import importlib
import sys

from visionattn.errors import BackendError, require

__all__ = ["install", "is_compiled"]

_NAME = "mmcv._ext"
_ORIGIN = "visionattn.engine.compat.ops"


def _load() -> bool:
    """Import `mmcv._ext` from any provider and return True, or return False if it does not exist."""
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
            f"the compiled operators of the installed mmcv cannot be loaded ({reason}); install an mmcv "
            "wheel for this PyTorch, or replace it: pip uninstall mmcv && pip install mmcv-lite==2.1.0"
        ) from error
    return True


def is_compiled() -> bool:
    """Return True if the compiled operators of mmcv are in use, False with the replacements or without any."""
    if not _load():
        return False
    spec = getattr(sys.modules[_NAME], "__spec__", None)
    return getattr(spec, "origin", None) != _ORIGIN


def install() -> bool:
    """Make `mmcv.ops` importable by supplying `mmcv._ext` if no compiled one is installed.

    It must be called before mmdet, mmseg or `mmcv.ops` is imported; importing `visionattn.engine` calls it. Calling it
    again has no further effect.

    Returns:
        True if the replacements are in use, False if a compiled `mmcv._ext` is installed.

    Raises:
        MissingDependencyError: mmcv or torchvision is not installed.
        BackendError: the compiled operators of mmcv or torchvision do not match the installed PyTorch.
    """
    if _load():
        return not is_compiled()
    require("torchvision")
    try:
        require("torchvision.ops")
    except RuntimeError as error:  # raised when torchvision registers fake kernels for missing operators
        raise BackendError(
            f"torchvision does not match the installed PyTorch ({str(error).splitlines()[0]}); "
            "install both from one index: pip install --upgrade torch torchvision"
        ) from error
    from .module import build
    from .nms import without_invalid

    module = build()
    sys.modules[_NAME] = module
    sys.modules["mmcv"]._ext = module
    suppression, operators = (importlib.import_module(name) for name in ("mmcv.ops.nms", "mmcv.ops"))
    suppression.batched_nms = operators.batched_nms = without_invalid(suppression.batched_nms)
    return True
