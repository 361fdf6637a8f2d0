"""Image forgery localization and detection.

- ``sets.py``, ``benco.py``: datasets; ``create/``: synthetic forgeries; ``augment.py``: augmentation
- ``net.py``, ``heads.py``, ``noise.py``: the model on any backbone
- ``nfa_vit.py``, ``branches.py``: NFA-ViT; ``metrics.py``: pixel and image metrics
- ``mmlab.py``, ``mmlab_data.py``, ``mmlab_metric.py``: models, datasets and metric for mmengine
"""
