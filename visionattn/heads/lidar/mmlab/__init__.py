"""Registration of point cloud detection with OpenMMLab: the models, datasets, transforms and metrics."""

from visionattn.heads.lidar.mmlab import data, detector, metrics

__all__ = ["data", "detector", "metrics"]
