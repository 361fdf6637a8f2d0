import json

import numpy as np
import pytest

from visionattn.errors import ConfigError
from visionattn.inference import Predictor
from visionattn.inference.file_run import VideoOptions
from visionattn.inference.files import plan_files, predict_files
from visionattn.inference.results import Prediction
from visionattn.inference.video import Tracker, VideoReader, VideoWriter
from visionattn.io.inputs import find_inputs

pytest.importorskip("trackers")


def boxes(frame: int) -> np.ndarray:
    """Three objects: one moves right, one left, one stands still and is hidden in frames 6 to 9."""
    found = [[4 * frame, 10, 4 * frame + 20, 30], [180 - 4 * frame, 60, 200 - 4 * frame, 80]]
    return np.array(found + ([] if 6 <= frame < 10 else [[90, 100, 120, 130]]), np.float32)


def prediction(found: np.ndarray, order: np.ndarray) -> Prediction:
    found = found[order]
    scores = np.linspace(0.9, 0.5, len(found)).astype(np.float32)
    return Prediction((140, 200), ("car",), found, scores, np.zeros(len(found), np.int64))


def test_objects_keep_their_ids():
    tracker, rng = Tracker(fps=10, score_thr=0.3), np.random.default_rng(0)
    ids: list[dict[int, int]] = []
    for frame in range(20):
        order = rng.permutation(len(boxes(frame)))  # the order of detections means nothing
        tracked = tracker.update(prediction(boxes(frame), order), frame / 10)
        ids.append(dict(zip(order.tolist(), tracked.track_ids.tolist(), strict=True)))
    assert set(ids[0].values()) == {-1}
    first = ids[2]
    assert len(set(first.values()) - {-1}) == 3
    for frame in range(2, 20):
        visible = {index: first[index] for index in range(len(boxes(frame)))}
        assert ids[frame] == visible


def test_frames_without_objects():
    tracker = Tracker(fps=25, score_thr=0.3)
    none = Prediction((10, 10), ("car",))
    assert tracker.update(none).track_ids.shape == (0,)
    tracker.update(prediction(boxes(0), np.arange(3)))
    assert tracker.update(none).track_ids.shape == (0,)


def test_selection_keeps_ids():
    tracked = Prediction((140, 200), ("car",), boxes(0), np.ones(3, np.float32), np.zeros(3, np.int64))
    tracked = Tracker(25, 0.3).update(tracked)
    assert tracked.select([2, 0]).track_ids.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="`track_ids` must have one entry per box"):
        Prediction((10, 10), ("car",), track_ids=np.zeros(2, np.int64))


def test_ids_in_files_and_on_frames(make_model, painted, tmp_path, monkeypatch):
    path, decoded = tmp_path / "v.webm", VideoReader.__iter__
    palette = painted(1, 3, ("red", 0, 0, 1, 1), ("blue", 1, 0, 2, 1))[0].astype(int)  # the third one is the background

    def exact(self):
        """The frames with the colors that the model looks for, which the compression has changed."""
        for frame in decoded(self):
            yield palette[np.abs(frame[..., None, :] - palette).sum(-1).argmin(-1)].astype(np.uint8)

    monkeypatch.setattr(VideoReader, "__iter__", exact)
    with VideoWriter(path, 128, 96, 10) as writer:
        for frame in range(8):
            writer.write(painted(96, 128, ("red", 20 + 3 * frame, 30, 50 + 3 * frame, 60)))
    seen = {}
    for track in (False, True):
        out = tmp_path / str(track)
        plan = plan_files(find_inputs([path]), out)
        predictor = Predictor.from_model(make_model(with_masks=True), batch_size=3)
        predict_files(predictor, plan, {}, video=VideoOptions(track=track))
        frames = json.loads((out / "v.frames.json").read_text())["frames"]
        record = json.loads((out / "predictions.json").read_text())["images"][0]
        assert record.get("tracks") == ({"red": 1} if track else None)
        seen[track] = [d.get("track_id") for frame in frames for d in frame["detections"]]
        with VideoReader(out / "v.webm") as reader:
            seen[f"{track} picture"] = list(reader)
    assert seen[False] == [None] * 8
    assert len(set(seen[True][1:])) == 1
    assert seen[True][1] is not None
    assert np.abs(seen["True picture"][5].astype(int) - seen["False picture"][5]).max() > 60  # the label has a number


def test_models_without_boxes_are_refused(make_model, tmp_path):
    predictor = Predictor.from_model(make_model())
    type(predictor.job).trackable, before = False, type(predictor.job).trackable
    try:
        with pytest.raises(ConfigError, match="`track` is not supported for detection models"):
            predict_files(predictor, plan_files([], tmp_path / "out"), {}, video=VideoOptions(track=True))
    finally:
        type(predictor.job).trackable = before
