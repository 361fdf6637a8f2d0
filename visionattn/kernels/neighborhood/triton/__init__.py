"""Neighborhood attention in Triton."""
