"""LiDAR object detection in bird's-eye view.

- ``data/``: readers of datasets and point cloud files, augmentation, voxelization; ``simulate/``: the sample dataset
- ``voxel_encoder.py``, ``neck.py``, ``center_head.py``, ``transfusion_head.py``, ``transfusion_losses.py``,
  ``targets.py``, ``losses.py``, ``decoding.py``, ``rotated_boxes.py``: the model
- ``metrics_kitti.py``, ``metrics_nuscenes.py``, ``metrics_waymo.py``: the metrics of these benchmarks
- ``mmlab/``: dataset, detector and metrics for mmengine
"""
