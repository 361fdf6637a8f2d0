"""Sparse 3D convolution on voxels."""

from visionattn.kernels.sparse_conv.api import sparse_conv3d, sparse_depthwise_conv3d
from visionattn.kernels.sparse_conv.neighbors import Neighbors

__all__ = ["Neighbors", "sparse_conv3d", "sparse_depthwise_conv3d"]
