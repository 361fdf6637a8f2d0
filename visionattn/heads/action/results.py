"""Actions in videos: scores of the classes, and a picture of the frames that they are from."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require

__all__ = ["action_record", "draw_action", "find_points"]

SUFFIXES = (".npy", ".json", ".skeleton", ".csv", "_pose3d.json", "_skeleton2d.json")
SIDE = 160
"""Height of a frame in the overlay, in pixels."""


def find_points(video: Path, points: str | Path | None) -> Path | None:
    """The file of key points of a video: ``points`` itself, or in that folder the file with the video's name.

    Raises:
        DataError: ``points`` is not there, or the folder has none of this video.
    """
    if points is None:
        return None
    points = Path(points)
    if points.is_file():
        return points
    if not points.is_dir():
        raise DataError(f"--points {points}: there is no such file or folder")
    for suffix in SUFFIXES:
        if (found := points / f"{video.stem}{suffix}").is_file():
            return found
    raise DataError(f"{video}: {points} has no key points of it, such as {video.stem}.npy")


def action_record(result: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What JSON says of a video: its best class, all scores, and which frames were looked at."""
    scores = result["class_scores"]
    best = int(np.argmax(scores))
    return {
        "action": classes[best],
        "action_score": round(float(scores[best]), 5),
        "class_scores": {name: round(float(score), 5) for name, score in zip(classes, scores, strict=True)},
        "with_pose": result["mask"] is not None,
        "frames": result["frame_indices"],
        "seconds": round(float(result["timing"]["total"]), 5),
    }


def draw_action(result: dict[str, Any], caption: str) -> np.ndarray:
    """The frames of the first view side by side, patches outside of the pose dimmed, with a line of text below.

    Args:
        result: of `visionattn.engine.model.LoadedModel.predict_video`.
        caption: the text, in ASCII.

    Returns:
        BGR uint8 ``[H, W, 3]``.
    """
    cv2 = require("cv2")
    tiles = []
    for number, frame in enumerate(result["frames"]):
        shown = frame[..., ::-1].astype(np.float32)
        if result["mask"] is not None:
            patch = result["patch_size"]
            mask = result["mask"][number].astype(np.float32).repeat(patch, 0).repeat(patch, 1)
            shown = shown * (0.35 + 0.65 * mask[: frame.shape[0], : frame.shape[1], None])
        width = max(1, round(frame.shape[1] * SIDE / frame.shape[0]))
        tiles.append(cv2.resize(shown.round().astype(np.uint8), (width, SIDE)))
    columns = min(4, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    sheet = np.concatenate([*rows, np.zeros((28, rows[0].shape[1], 3), np.uint8)])
    cv2.putText(sheet, caption, (6, sheet.shape[0] - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet
