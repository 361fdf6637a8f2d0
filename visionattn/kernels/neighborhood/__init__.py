"""Neighborhood attention: sliding window, dilated, strided and causal, in 1D, 2D and 3D."""

from visionattn.kernels.neighborhood import flops as flops
from visionattn.kernels.neighborhood.api import na1d, na2d, na3d

__all__ = ["na1d", "na2d", "na3d"]
