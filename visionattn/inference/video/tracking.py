"""Tracking of objects through a video with ByteTrack."""

from dataclasses import replace

import numpy as np

from visionattn.errors import require
from visionattn.inference.results import Prediction

__all__ = ["Tracker"]


class Tracker:
    """Gives the boxes of an object the same id in all frames of a video: ByteTrack (Zhang et al., 2022).

    Boxes are matched by their position only, whatever their class is. Ids count from 1. An object has one from its
    second consecutive frame on, and keeps it if it is not detected for up to one second. The package ``trackers`` is
    required.

    Args:
        fps: frames per second.
        score_thr: the lowest score of the detections.

    Raises:
        MissingDependencyError: trackers is not installed.
    """

    def __init__(self, fps: float, score_thr: float) -> None:
        self._supervision = require("supervision")
        self._tracker = require("trackers").ByteTrackTracker(
            lost_track_buffer=30,  # frames at a rate of 30, which `frame_rate` scales
            frame_rate=fps,
            track_activation_threshold=score_thr,
            high_conf_det_threshold=score_thr,
        )

    def update(self, prediction: Prediction, time: float | None = None) -> Prediction:
        """Return the prediction for the next frame with its ``track_ids``.

        Args:
            prediction: boxes of the frame.
            time: time stamp of the frame in seconds; None for a constant rate.
        """
        detections = self._supervision.Detections(
            xyxy=prediction.boxes.astype(np.float32),
            confidence=prediction.scores,
            class_id=prediction.labels,
            data={"index": np.arange(len(prediction))},
        )
        tracked = self._tracker.update(detections, timestamp=time)
        ids = np.full(len(prediction), -1, np.int64)
        if len(tracked):  # in another order, and without data if there are none
            ids[tracked.data["index"]] = np.where(tracked.tracker_id >= 0, tracked.tracker_id + 1, -1)
        return replace(prediction, track_ids=ids)
