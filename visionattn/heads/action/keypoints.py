"""Readers of keypoint files: Toyota Smarthome, NTU RGB+D, Kinetics-Skeleton, COCO, CSV and NumPy arrays."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.io.json import read_json

__all__ = ["FLIP_PAIRS", "FORMATS", "JOINTS", "read_points"]

JOINTS = {"coco": 17, "posetrack": 17, "openpose": 18, "smarthome": 13, "ntu": 25}
"""Number of joints of each skeleton."""

FLIP_PAIRS: dict[str, tuple[tuple[int, int], ...]] = {
    "coco": ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    "posetrack": ((3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    "openpose": ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17)),
    "smarthome": ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    "ntu": ((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19), (21, 23), (22, 24)),
}
"""Left-right joint pairs to swap when an image is flipped, by skeleton."""

MAX_FRAMES = 1_000_000
MAX_PEOPLE = 1_000
MAX_POINTS = 16_000_000
"""Maximum of frames x people x joints, since a short file can announce a million frames of a thousand people."""


def read_points(
    path: str | Path, kind: str | None = None, *, min_score: float = 0.0, allow_pickle: bool = False
) -> np.ndarray:
    """Read the keypoints of all people in each frame of a video.

    Supported formats:

    - ``"smarthome"``: LCRNet++ JSON of Toyota Smarthome, also used for NW-UCLA; only the first person is read. A frame
      with any coordinate of -1 has no pose, as in the published code.
    - ``"ntu"``: ``.skeleton`` text files of NTU RGB+D; the positions in the color frames of 1920 x 1080 are read.
    - ``"ntu-npy"``: NTU RGB+D as a pickled dictionary with ``rgb_body0``, ``rgb_body1``.
    - ``"kinetics"``: JSON of Kinetics-Skeleton; coordinates remain relative to the frame, in [0, 1].
    - ``"coco"``: COCO or PoseTrack JSON with one image per frame, ordered by ``frame_id`` if present and otherwise as
      in the file. Joints with visibility 0 are missing.
    - ``"csv"``: columns ``frame``, ``joint``, ``x``, ``y`` and optionally ``person`` and ``score``; one line per point,
      indices from 0.
    - ``"npy"``: an array ``[frames, J, 2]`` or ``[frames, people, J, 2]``, or with a third value per point, the score.

    Args:
        path: the file.
        kind: one of the formats above; None detects the format from the file name and content.
        min_score: points with a lower score are treated as missing, in formats with scores.
        allow_pickle: whether to load pickled ``.npy`` files. Unpickling can execute arbitrary code, so use it only for
            trusted files, preferably once to convert them with ``numpy.save``.

    Returns:
        float32 ``[frames, people, J, 2]``, x and y in pixels of the original frame; NaN where a point is missing.

    Raises:
        DataError: if the file is missing, damaged or of another format; the message names the location.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: keypoint file not found")
    if kind is not None and kind not in FORMATS:
        raise DataError(f"{path}: `kind` must be one of {', '.join(FORMATS)}, got {kind!r}")
    try:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and then missing
            points = np.asarray(_read(path, kind, min_score, allow_pickle), np.float32)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # malformed content can raise any exception
        what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise DataError(f"{path}: is damaged or of another format ({what})") from error
    np.copyto(points, np.nan, where=~np.isfinite(points).all(-1, keepdims=True))  # needs less memory than indexing
    return points


def _read(path: Path, kind: str | None, min_score: float, allow_pickle: bool) -> np.ndarray:
    if path.suffix == ".npy" or kind in ("npy", "ntu-npy"):
        return _read_array(path, allow_pickle, min_score)
    if path.suffix == ".skeleton" or kind == "ntu":
        return _read_ntu(path)
    if path.suffix == ".csv" or kind == "csv":
        return _read_csv(path, min_score)
    content = read_json(path)
    found = kind or _json_kind(content)
    if found not in _JSON:
        raise DataError(f"{path}: unknown keypoint format; set `kind` to one of {', '.join(FORMATS)}")
    return _JSON[found](path, content, min_score)


def _json_kind(content: Any) -> str | None:
    if isinstance(content, dict):
        for key, kind in (("annotations", "coco"), ("data", "kinetics"), ("frames", "smarthome")):
            if isinstance(content.get(key), list):
                return kind
    return None


def _stack(path: Path, frames: list[list[np.ndarray]], joints: int | None = None) -> np.ndarray:
    """Stack frames with varying numbers of people, each ``[J, 2]``, into one array padded with NaN."""
    people = max((len(frame) for frame in frames), default=0)
    if people > MAX_PEOPLE or len(frames) > MAX_FRAMES:
        raise DataError(
            f"{path}: must have at most {MAX_FRAMES} frames and {MAX_PEOPLE} people, got {len(frames)} and {people}"
        )
    for number, frame in enumerate(frames):
        for person in frame:
            joints = len(person) if joints is None else joints
            if len(person) != joints:
                raise DataError(f"{path}: frame {number}: all people must have {joints} joints, got {len(person)}")
    if not frames or not joints:
        raise DataError(f"{path}: contains no frames with joints")
    points = _empty(path, len(frames), max(people, 1), joints)
    for number, frame in enumerate(frames):
        for person, values in enumerate(frame):
            points[number, person] = values
    return points


def _empty(path: Path, frames: int, people: int, joints: int) -> np.ndarray:
    if frames * people * joints > MAX_POINTS:
        raise DataError(
            f"{path}: frames x people x joints must be at most {MAX_POINTS}, got {frames} x {people} x {joints}"
        )
    return np.full((frames, people, joints, 2), np.nan, np.float32)


def _read_smarthome(path: Path, content: Any, min_score: float) -> np.ndarray:
    frames = []
    for number, people in enumerate(content["frames"]):
        flat = np.asarray(people[0]["pose2d"], np.float64) if people else np.zeros(0)
        if flat.ndim != 1 or len(flat) % 2:
            raise DataError(
                f"{path}: frame {number}: pose2d must be a flat list, x of all joints and then y, got {flat.shape}"
            )
        person = flat.reshape(2, -1).T
        known = len(person) and not (person == -1).any()
        frames.append([person] if known else [])
    return _stack(path, frames, int(content["njts"]) if "njts" in content else None)


def _read_kinetics(path: Path, content: Any, min_score: float) -> np.ndarray:
    if not content["data"]:
        raise DataError(f"{path}: contains no frames with joints")
    numbers = [int(frame["frame_index"]) for frame in content["data"]]
    if min(numbers) < 1 or max(numbers) > MAX_FRAMES:
        raise DataError(f"{path}: frame_index must be in 1..{MAX_FRAMES}, got {min(numbers)} to {max(numbers)}")
    frames: list[list[np.ndarray]] = [[] for _ in range(max(numbers))]
    for number, frame in zip(numbers, content["data"], strict=True):
        for person in frame["skeleton"]:
            values = np.asarray(person["pose"], np.float64).reshape(-1, 2)
            score = np.asarray(person.get("score", np.ones(len(values))), np.float64)
            missing = (score <= 0) | (score < min_score)  # the dataset marks missing points by score 0
            frames[number - 1].append(np.where(missing[:, None], np.nan, values))
    return _stack(path, frames)


def _read_coco(path: Path, content: Any, min_score: float) -> np.ndarray:
    images = content["images"]
    if all("frame_id" in image for image in images):
        images = sorted(images, key=lambda image: image["frame_id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    frames: list[list[np.ndarray]] = [[] for _ in images]
    for annotation in content["annotations"]:
        if not annotation.get("keypoints"):
            continue
        if annotation["image_id"] not in place:
            raise DataError(f"{path}: an annotation refers to image {annotation['image_id']}, which is not in the file")
        values = np.asarray(annotation["keypoints"], np.float64).reshape(-1, 3)
        frames[place[annotation["image_id"]]].append(np.where(values[:, 2:] > 0, values[:, :2], np.nan))
    return _stack(path, frames)


_JSON: dict[str, Callable[[Path, Any, float], np.ndarray]] = {
    "smarthome": _read_smarthome,
    "kinetics": _read_kinetics,
    "coco": _read_coco,
}
FORMATS = (*_JSON, "ntu", "ntu-npy", "csv", "npy")
"""File formats that `read_points` supports."""


def _read_ntu(path: Path) -> np.ndarray:
    """Parse the text format, in which the counts of frames, bodies and joints precede the items on separate lines."""
    lines = iter(path.read_text(encoding="ascii").split("\n"))

    def following() -> list[str]:
        line = next(lines, None)
        if line is None:
            raise DataError(f"{path}: is truncated")
        return line.split()

    frames = []
    for _ in range(min(int(following()[0]), MAX_FRAMES)):
        people = []
        for _ in range(min(int(following()[0]), MAX_PEOPLE)):
            following()  # body id, tracking confidences and lean
            joints = [following() for _ in range(min(int(following()[0]), MAX_PEOPLE))]
            people.append(np.asarray([[float(j[5]), float(j[6])] for j in joints]))
        frames.append(people)
    return _stack(path, frames, JOINTS["ntu"] if not any(frames) else None)


def _read_csv(path: Path, min_score: float) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        lacking = [name for name in ("frame", "joint", "x", "y") if name not in (rows.fieldnames or ())]
        if lacking:
            raise DataError(f"{path}: the header must have the columns frame, joint, x and y; {lacking[0]} is missing")
        found = []
        for row in rows:
            empty = [key for key in ("frame", "joint", "x", "y") if not (row.get(key) or "").strip()]
            if empty:
                raise DataError(f"{path}:{rows.line_num}: {empty[0]} is empty")
            place = tuple(int(row.get(key) or 0) for key in ("frame", "person", "joint"))
            limits = (MAX_FRAMES, MAX_PEOPLE, MAX_PEOPLE)
            if any(not 0 <= value < limit for value, limit in zip(place, limits, strict=True)):
                raise DataError(
                    f"{path}:{rows.line_num}: frame, person and joint must be in 0 to {limits}, got {place}"
                )
            if float(row.get("score") or 1.0) >= min_score:
                found.append((*place, float(row["x"]), float(row["y"])))
    if not found:
        raise DataError(f"{path}: contains no points")
    table = np.asarray(found)
    frame, person, joint = table[:, :3].astype(np.int64).T
    points = _empty(path, int(frame.max()) + 1, int(person.max()) + 1, int(joint.max()) + 1)
    points[frame, person, joint] = table[:, 3:]
    return points


def _read_array(path: Path, allow_pickle: bool, min_score: float) -> np.ndarray:
    try:
        # Memory mapping compares the header with the file size, but does not support objects.
        content = np.load(path, mmap_mode=None if allow_pickle else "r", allow_pickle=allow_pickle)
    except ValueError as error:
        if re.search("pickle|Python objects", str(error)) and not allow_pickle:
            raise DataError(
                f"{path}: is a pickle, which can execute code; if you trust the file, convert it with "
                "numpy.save(NEW, read_points(PATH, allow_pickle=True))"
            ) from error
        raise
    if content.dtype == object:
        return _ntu_bodies(path, content)
    if content.ndim == 3:
        content = content[:, None]
    if content.ndim != 4 or content.shape[3] not in (2, 3) or not content.size:
        raise DataError(
            f"{path}: must be [frames, J, 2 or 3] or [frames, people, J, 2 or 3] and not empty, got {content.shape}"
        )
    points = content[..., :2].astype(np.float64)
    if content.shape[3] == 3:
        points[~(content[..., 2] >= min_score)] = np.nan
    return points


def _ntu_bodies(path: Path, content: np.ndarray) -> np.ndarray:
    bodies = content.item()
    names = sorted(name for name in bodies if str(name).startswith("rgb_body"))
    if not names:
        raise DataError(f"{path}: is not an NTU skeleton file: rgb_body0 is missing")
    return np.stack([np.asarray(bodies[name], np.float64) for name in names], 1)
