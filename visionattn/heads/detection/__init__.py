"""Object detection and instance segmentation with the detectors of mmdet."""
