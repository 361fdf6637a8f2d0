"""Bi-level routing attention in plain PyTorch."""
