"""Scattered linear attention in Triton."""
