"""Sample scans of a simulated LiDAR: ray casting, random street scenes, and the dataset."""
