"""Semantic and panoptic segmentation with the models of mmseg and mmdet."""
