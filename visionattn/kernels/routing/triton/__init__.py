"""Bi-level routing attention in Triton."""
