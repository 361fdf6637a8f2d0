"""Analytical model of the speed of sparse attention."""
