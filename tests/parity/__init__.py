"""Recorded outputs of models, layers, heads and kernels, whose weights and inputs are computed and not stored."""
