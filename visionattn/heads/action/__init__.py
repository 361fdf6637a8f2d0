"""Pose-aware action recognition in videos.

- ``clips.py``, ``keypoints.py``, ``lists.py``, ``masks.py``: videos, keypoint files, annotation lists, patch masks
- ``samples.py``: the sample dataset; ``heads.py``: auxiliary head and loss; ``metrics.py``: accuracies
- ``mmlab.py``, ``mmlab_data.py``, ``mmlab_metric.py``: model, dataset and metric for mmengine
"""
