"""The one place that imports mmengine, mmcv, mmdet and mmseg.

A config needs only ``custom_imports = dict(imports=["visionattn.openmmlab"])``. Importing this package

- puts a stand-in for mmcv's compiled operators in place where those are missing (`visionattn.engine.compat.ops`),
- and one for COCO's panopticapi, where that is missing (`visionattn.engine.compat.panopticapi`),
- registers ``visionattn.Backbone``, ``visionattn.Albu`` and what else configs may name,
- replaces every way in which mmengine reads or writes checkpoints by one that never unpickles objects
  (`visionattn.engine.compat.checkpoint`).
"""

import os
import warnings

from visionattn.errors import require

require("mmengine")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # which mmdet imports, and it would ask PyPI for its version

from visionattn.engine.compat import (  # noqa: E402
    ops,
    panopticapi,
)

ops.install()  # before the first import of mmdet or mmseg
panopticapi.install()

# Nothing a reader of the screen could act on: deprecations inside OpenMMLab, pycocotools and torch.jit.
warnings.filterwarnings("ignore", message=r".*pkg_resources.*")
warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
warnings.filterwarnings("ignore", message=r".*__array__.*copy.*")
warnings.filterwarnings("ignore", message=r".*torch\.meshgrid.*")
warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp.*")
warnings.filterwarnings("ignore", message=r".*`Visualizer` backend is not initialized.*")

from visionattn.engine.compat import checkpoint  # noqa: E402

checkpoint.install()

from visionattn.engine.config.load import format_once  # noqa: E402
from visionattn.engine.parts.albu import Albu  # noqa: E402
from visionattn.engine.parts.backbone import Backbone  # noqa: E402
from visionattn.engine.parts.losses import CrossEntropyLoss  # noqa: E402
from visionattn.engine.parts.transforms import RandomScaleCrop, RandomTranspose  # noqa: E402
from visionattn.engine.train.hooks import CheckpointHook, StopHook  # noqa: E402
from visionattn.engine.train.progress import ProgressHook  # noqa: E402
from visionattn.engine.train.robustness import DegradeImage  # noqa: E402
from visionattn.engine.train.train_options import BF16OptimWrapper, WandbBackend  # noqa: E402
from visionattn.heads.action.mmlab import ClipPreprocessor, PoseRecognizer, VideoTransformer  # noqa: E402
from visionattn.heads.action.mmlab_data import (  # noqa: E402
    ActionDataset,
    CropClip,
    FlipClip,
    LoadClip,
    PackClip,
    ResizeClip,
)
from visionattn.heads.action.mmlab_metric import ActionMetric  # noqa: E402
from visionattn.heads.forgery.mmlab import ForgeryLocalizer, NFAViTLocalizer  # noqa: E402
from visionattn.heads.forgery.mmlab_data import (  # noqa: E402
    BalancedForgeryDataset,
    ForgeImage,
    ForgeryAugment,
    ForgeryDataset,
    LoadForgeryMask,
)
from visionattn.heads.forgery.mmlab_metric import ForgeryMetric  # noqa: E402
from visionattn.heads.lidar.mmlab.data import (  # noqa: E402
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
from visionattn.heads.lidar.mmlab.detector import BEVDetector, PointDataPreprocessor, SparseBackbone  # noqa: E402
from visionattn.heads.lidar.mmlab.metrics import BEVDistanceMetric, BEVMetric  # noqa: E402
from visionattn.heads.localization.mmlab import CAM, SAT, VisionTransformer  # noqa: E402
from visionattn.heads.localization.mmlab_data import LocalizationDataset, PackLocalizationInputs  # noqa: E402
from visionattn.heads.localization.mmlab_metric import LocalizationMetric, SATLocalizationMetric  # noqa: E402

format_once()

JOBS = (
    "visionattn.heads.detection",
    "visionattn.heads.segmentation",
    "visionattn.heads.localization",
    "visionattn.heads.forgery",
    "visionattn.heads.lidar",
    "visionattn.heads.action",
)
from visionattn.inference.job import add_job_modules  # noqa: E402

add_job_modules(JOBS)

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
