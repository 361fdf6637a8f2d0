"""Registered types that several jobs use: backbone, datasets, transforms, losses, metrics."""
