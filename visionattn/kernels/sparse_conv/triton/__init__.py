"""Sparse convolution in Triton."""
