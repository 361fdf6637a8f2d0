"""Data: sample scenes, public datasets, checks of annotation files, image transforms."""
