"""Synthetic forgeries with exact masks.

- ``synthesis.py``: the operations; ``regions.py``: random regions; ``scenes.py``: parts of a scene and new content
- ``donors.py``: photographs to take regions from; ``forge.py``: whole datasets
"""
