"""Image forgery localization and detection.

- ``sets.py``, ``benco.py``, ``donors.py``: datasets; ``synthesis.py``, ``regions.py``, ``augment.py``, ``forge.py``:
  synthetic forgeries
- ``net.py``, ``heads.py``, ``noise.py``: the model on any backbone
- ``nfa_vit.py``, ``branches.py``: NFA-ViT; ``metrics.py``: pixel and image metrics
- ``mmlab.py``, ``mmlab_data.py``, ``mmlab_metric.py``: models, datasets and metric for mmengine
"""
