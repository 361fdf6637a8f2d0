"""Videos: files, cameras and network streams, frame by frame, and tracking of objects."""

from visionattn.inference.video.files import VideoReader, VideoWriter
from visionattn.inference.video.live import LiveReader
from visionattn.inference.video.tracking import Tracker

__all__ = ["LiveReader", "Tracker", "VideoReader", "VideoWriter"]
