"""Interfaces of other libraries on top of the kernels of this package."""
