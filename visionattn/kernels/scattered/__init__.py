"""Scattered linear attention over windows of different lengths (ScatterFormer)."""

from visionattn.kernels.scattered import flops as flops
from visionattn.kernels.scattered.api import scattered_linear_attention

__all__ = ["scattered_linear_attention"]
