"""Predictions for large numbers of files: results in parts, shards for several processes, continued runs."""

from visionattn.inference.bulk.parts import FORMATS, read_parts
from visionattn.inference.bulk.run import BulkOptions, predict_bulk

__all__ = ["FORMATS", "BulkOptions", "predict_bulk", "read_parts"]
