"""Efficient-attention vision backbones, registered with timm, and dense prediction on top of them.

Importing this package registers the backbones with timm and needs only torch and timm. OpenMMLab, OpenCV,
albumentations and Triton are imported by the parts that use them, when they are used.
"""

from visionattn import backbones as backbones
from visionattn._version import __version__ as __version__
