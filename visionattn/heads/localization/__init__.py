"""Weakly supervised object localization: object boxes from models trained on image labels.

- ``sets.py``, ``samples.py``: metadata of datasets, and the sample dataset
- ``sat.py``, ``cam.py``: spatial-aware token, class activation maps and Grad-CAM
- ``metrics.py``, ``metrics_sat.py``: MaxBoxAcc, PxAP, and the protocol of SAT
- dual cross-attention for fine-grained classes is in ``visionattn.layers``
- ``mmlab.py``, ``mmlab_data.py``, ``mmlab_metric.py``: models, dataset and metrics for mmengine
"""
