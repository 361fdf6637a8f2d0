"""The one place that imports mmengine, mmcv, mmdet and mmseg.

A config needs only ``custom_imports = dict(imports=["visionattn.openmmlab"])``. Importing this package

- puts a stand-in for mmcv's compiled operators in place where those are missing (`visionattn.openmmlab.ops`),
- registers ``visionattn.Backbone`` and what else configs may name,
- replaces every way in which mmengine reads or writes checkpoints by one that never unpickles objects
  (`visionattn.openmmlab.checkpoint`).
"""

import warnings

from visionattn.errors import require

require("mmengine")

from visionattn.openmmlab import ops  # noqa: E402

ops.install()  # before the first import of mmdet or mmseg

# Nothing a reader of the screen could act on: deprecations inside OpenMMLab, pycocotools and torch.jit.
warnings.filterwarnings("ignore", message=r".*pkg_resources.*")
warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
warnings.filterwarnings("ignore", message=r".*__array__.*copy.*")
warnings.filterwarnings("ignore", message=r".*torch\.meshgrid.*")
warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp.*")
warnings.filterwarnings("ignore", message=r".*`Visualizer` backend is not initialized.*")

from visionattn.openmmlab import checkpoint  # noqa: E402

checkpoint.install()

from visionattn.openmmlab.backbone import Backbone  # noqa: E402
from visionattn.openmmlab.forgery import ForgeryLocalizer, NFAViTLocalizer  # noqa: E402
from visionattn.openmmlab.forgery_data import (  # noqa: E402
    BalancedForgeryDataset,
    ForgeImage,
    ForgeryAugment,
    ForgeryDataset,
    LoadForgeryMask,
)
from visionattn.openmmlab.forgery_metric import ForgeryMetric  # noqa: E402
from visionattn.openmmlab.hooks import CheckpointHook, StopHook  # noqa: E402
from visionattn.openmmlab.progress import ProgressHook  # noqa: E402
from visionattn.openmmlab.robustness import DegradeImage  # noqa: E402

__all__ = [
    "Backbone",
    "BalancedForgeryDataset",
    "CheckpointHook",
    "DegradeImage",
    "ForgeImage",
    "ForgeryAugment",
    "ForgeryDataset",
    "ForgeryLocalizer",
    "ForgeryMetric",
    "LoadForgeryMask",
    "NFAViTLocalizer",
    "ProgressHook",
    "StopHook",
]
