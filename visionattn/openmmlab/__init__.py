"""The one place that imports mmengine, mmcv, mmdet and mmseg.

A config needs only ``custom_imports = dict(imports=["visionattn.openmmlab"])``. Importing this package

- puts a stand-in for mmcv's compiled operators in place where those are missing (`visionattn.openmmlab.ops`),
- and one for COCO's panopticapi, where that is missing (`visionattn.openmmlab.panopticapi`),
- registers ``visionattn.Backbone``, ``visionattn.Albu`` and what else configs may name,
- replaces every way in which mmengine reads or writes checkpoints by one that never unpickles objects
  (`visionattn.openmmlab.checkpoint`).
"""

import os
import warnings

from visionattn.errors import require

require("mmengine")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # which mmdet imports, and it would ask PyPI for its version

from visionattn.openmmlab import ops, panopticapi  # noqa: E402

ops.install()  # before the first import of mmdet or mmseg
panopticapi.install()

# Nothing a reader of the screen could act on: deprecations inside OpenMMLab, pycocotools and torch.jit.
warnings.filterwarnings("ignore", message=r".*pkg_resources.*")
warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
warnings.filterwarnings("ignore", message=r".*__array__.*copy.*")
warnings.filterwarnings("ignore", message=r".*torch\.meshgrid.*")
warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp.*")
warnings.filterwarnings("ignore", message=r".*`Visualizer` backend is not initialized.*")

from visionattn.openmmlab import checkpoint  # noqa: E402

checkpoint.install()

from visionattn.openmmlab.action import ClipPreprocessor, PoseRecognizer, VideoTransformer  # noqa: E402
from visionattn.openmmlab.action_data import (  # noqa: E402
    ActionDataset,
    CropClip,
    FlipClip,
    LoadClip,
    PackClip,
    ResizeClip,
)
from visionattn.openmmlab.action_metric import ActionMetric  # noqa: E402
from visionattn.openmmlab.albu import Albu  # noqa: E402
from visionattn.openmmlab.backbone import Backbone  # noqa: E402
from visionattn.openmmlab.bev import BEVDetector, PointDataPreprocessor, SparseBackbone  # noqa: E402
from visionattn.openmmlab.bev_data import (  # noqa: E402
    PackPoints,
    PasteObjects,
    PointCloudDataset,
    PointDrop,
    PointFlip,
    PointRangeFilter,
    PointRotation,
    PointScaling,
    PointShuffle,
    PointTranslation,
)
from visionattn.openmmlab.bev_metric import BEVDistanceMetric, BEVMetric  # noqa: E402
from visionattn.openmmlab.config import format_once  # noqa: E402
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
from visionattn.openmmlab.localization import CAM, SAT, VisionTransformer  # noqa: E402
from visionattn.openmmlab.localization_data import LocalizationDataset, PackLocalizationInputs  # noqa: E402
from visionattn.openmmlab.localization_metric import LocalizationMetric, SATLocalizationMetric  # noqa: E402
from visionattn.openmmlab.losses import CrossEntropyLoss  # noqa: E402
from visionattn.openmmlab.progress import ProgressHook  # noqa: E402
from visionattn.openmmlab.robustness import DegradeImage  # noqa: E402
from visionattn.openmmlab.train_options import BF16OptimWrapper, WandbBackend  # noqa: E402
from visionattn.openmmlab.transforms import RandomScaleCrop, RandomTranspose  # noqa: E402

format_once()

__all__ = [
    "CAM",
    "SAT",
    "ActionDataset",
    "ActionMetric",
    "Albu",
    "BEVDetector",
    "BEVDistanceMetric",
    "BEVMetric",
    "BF16OptimWrapper",
    "Backbone",
    "BalancedForgeryDataset",
    "CheckpointHook",
    "ClipPreprocessor",
    "CropClip",
    "CrossEntropyLoss",
    "DegradeImage",
    "FlipClip",
    "ForgeImage",
    "ForgeryAugment",
    "ForgeryDataset",
    "ForgeryLocalizer",
    "ForgeryMetric",
    "LoadClip",
    "LoadForgeryMask",
    "LocalizationDataset",
    "LocalizationMetric",
    "NFAViTLocalizer",
    "PackClip",
    "PackLocalizationInputs",
    "PackPoints",
    "PasteObjects",
    "PointCloudDataset",
    "PointDataPreprocessor",
    "PointDrop",
    "PointFlip",
    "PointRangeFilter",
    "PointRotation",
    "PointScaling",
    "PointShuffle",
    "PointTranslation",
    "PoseRecognizer",
    "ProgressHook",
    "RandomScaleCrop",
    "RandomTranspose",
    "ResizeClip",
    "SATLocalizationMetric",
    "SparseBackbone",
    "StopHook",
    "VideoTransformer",
    "VisionTransformer",
    "WandbBackend",
]
