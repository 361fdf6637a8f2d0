"""Scattered linear attention in plain PyTorch."""
