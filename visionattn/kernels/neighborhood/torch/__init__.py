"""Neighborhood attention in plain PyTorch."""
