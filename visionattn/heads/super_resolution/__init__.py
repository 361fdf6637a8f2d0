"""Single-image super-resolution.

- ``catanet.py``, ``backbone_net.py``, ``reconstruction.py``: CATANet, and a network on any backbone
- ``imresize.py``, ``metrics.py``, ``sets.py``: bicubic resizing equal to MATLAB's, PSNR and SSIM, public test sets
- ``job.py``, ``results.py``, ``merging.py``, ``export.py``: prediction, tiles and test-time augmentation, export
- ``mmlab.py``, ``mmlab_data.py``, ``mmlab_metric.py``: model, data and metric for mmengine
"""
