"""Registration of LiDAR detection with mmengine: dataset, detector and metrics."""
