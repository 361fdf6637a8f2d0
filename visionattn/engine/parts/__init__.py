"""Registered types that several jobs use: backbone, data sets, transforms, losses, metrics."""
