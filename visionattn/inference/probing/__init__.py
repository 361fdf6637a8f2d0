"""How well the frozen features of a backbone tell the classes of images: ``visionattn probe``.

- ``images.py``: folders with one subfolder of images per class
- ``features.py``: features of all images, computed once and kept in files
- ``probes.py``: linear probe, nearest neighbors and efficient probing
- ``report.py``: table and pictures
"""
