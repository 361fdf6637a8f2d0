"""Datasets, point cloud files, augmentation and voxelization of LiDAR detection."""
