"""LiDAR object detection in bird's-eye view.

- ``data/``: readers of datasets and point cloud files, augmentation, voxelization; ``simulate/``: the sample dataset
- ``voxel_encoder.py``, ``neck.py``, ``center_head.py``, ``targets.py``, ``losses.py``, ``rotated_boxes.py``: the model
- ``metrics_kitti.py``, ``metrics_nuscenes.py``: average precision
- ``mmlab/``: dataset, detector and metrics for mmengine
"""
