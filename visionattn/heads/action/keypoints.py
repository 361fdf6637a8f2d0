"""Files of key points: Toyota Smarthome, NTU RGB+D, Kinetics-Skeleton, COCO, CSV and NumPy arrays."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.io.json import read_json

__all__ = ["FLIP_PAIRS", "JOINTS", "KINDS", "read_points"]

JOINTS = {"coco": 17, "posetrack": 17, "openpose": 18, "smarthome": 13, "ntu": 25}
"""Names of sets of joints, and how many they have."""

FLIP_PAIRS: dict[str, tuple[tuple[int, int], ...]] = {
    "coco": ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    "posetrack": ((3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    "openpose": ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17)),
    "smarthome": ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    "ntu": ((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19), (21, 23), (22, 24)),
}
"""Joints that change places in a mirrored picture, by the name of the set."""

MAX_FRAMES = 1_000_000
MAX_PEOPLE = 1_000
MAX_POINTS = 16_000_000
"""Of an array: frames x people x joints. A file of one line can claim a million frames of a thousand people."""


def read_points(
    path: str | Path, kind: str | None = None, *, min_score: float = 0.0, allow_pickle: bool = False
) -> np.ndarray:
    """Key points of the people in each frame of a video.

    - ``"smarthome"``: JSON of LCRNet++ as Toyota Smarthome has it, and NW-UCLA in the same form; the first person.
      A frame with any coordinate of -1 has no pose, as published.
    - ``"ntu"``: NTU RGB+D's ``.skeleton`` text: its positions in the colour frames of 1920 x 1080.
    - ``"ntu-npy"``: its form as a pickled dictionary with ``rgb_body0``, ``rgb_body1``.
    - ``"kinetics"``: JSON of Kinetics-Skeleton; coordinates stay shares of the frame, in 0..1.
    - ``"coco"``: COCO or PoseTrack JSON, a frame for each image, by ``frame_id`` where there is one and else in the
      file's order. Joints with visibility 0 are missing.
    - ``"csv"``: a header with ``frame``, ``joint``, ``x``, ``y`` and, if wanted, ``person`` and ``score``; a line for
      each point, numbers from 0.
    - ``"npy"``: an array ``[frames, J, 2]`` or ``[frames, people, J, 2]``; a third number of a point is its score.

    Args:
        path: the file.
        kind: one of the above; None tells by the name and the content.
        min_score: points with a lower score are missing, in kinds with scores.
        allow_pickle: load a pickled ``.npy``. That runs what its maker put in: only for files that you trust, and
            better once, to save the result with ``numpy.save``.

    Returns:
        float32 ``[frames, people, J, 2]``, x and y in pixels of the original frame; NaN where a point is missing.

    Raises:
        DataError: the file is missing, damaged or of another kind; the message names the place.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of key points")
    if kind is not None and kind not in KINDS:
        raise DataError(f"{path}: kind={kind!r} must be one of {', '.join(KINDS)}")
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and so missing
            points = np.asarray(_read(path, kind, min_score, allow_pickle), np.float32)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # content of another form can raise anything
        what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise DataError(f"{path}: damaged or not of its kind ({what})") from error
    np.copyto(points, np.nan, where=~np.isfinite(points).all(-1, keepdims=True))  # an index would be ten times as large
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
        raise DataError(f"{path}: is not a file of key points known here; kinds are {', '.join(KINDS)}")
    return _JSON[found](path, content, min_score)


def _json_kind(content: Any) -> str | None:
    if isinstance(content, dict):
        for key, kind in (("annotations", "coco"), ("data", "kinetics"), ("frames", "smarthome")):
            if isinstance(content.get(key), list):
                return kind
    return None


def _stack(path: Path, frames: list[list[np.ndarray]], joints: int | None = None) -> np.ndarray:
    """Frames of any number of people, each ``[J, 2]``, as one array."""
    people = max((len(frame) for frame in frames), default=0)
    if people > MAX_PEOPLE or len(frames) > MAX_FRAMES:
        raise DataError(f"{path}: has {len(frames)} frames with up to {people} people, which cannot be")
    for number, frame in enumerate(frames):
        for person in frame:
            joints = len(person) if joints is None else joints
            if len(person) != joints:
                raise DataError(f"{path}: frame {number} has a person of {len(person)} joints, others have {joints}")
    if not frames or not joints:
        raise DataError(f"{path}: holds no frames with joints")
    points = _empty(path, len(frames), max(people, 1), joints)
    for number, frame in enumerate(frames):
        for person, values in enumerate(frame):
            points[number, person] = values
    return points


def _empty(path: Path, frames: int, people: int, joints: int) -> np.ndarray:
    if frames * people * joints > MAX_POINTS:
        raise DataError(f"{path}: {frames} frames of {people} people with {joints} joints cannot be")
    return np.full((frames, people, joints, 2), np.nan, np.float32)


def _read_smarthome(path: Path, content: Any, min_score: float) -> np.ndarray:
    frames = []
    for number, people in enumerate(content["frames"]):
        flat = np.asarray(people[0]["pose2d"], np.float64) if people else np.zeros(0)
        if flat.ndim != 1 or len(flat) % 2:
            raise DataError(f"{path}: frame {number} has a pose2d of shape {flat.shape}; x of all joints, then y")
        person = flat.reshape(2, -1).T
        known = len(person) and not (person == -1).any()
        frames.append([person] if known else [])
    return _stack(path, frames, int(content["njts"]) if "njts" in content else None)


def _read_kinetics(path: Path, content: Any, min_score: float) -> np.ndarray:
    if not content["data"]:
        raise DataError(f"{path}: holds no frames with joints")
    numbers = [int(frame["frame_index"]) for frame in content["data"]]
    if min(numbers) < 1 or max(numbers) > MAX_FRAMES:
        raise DataError(f"{path}: frame_index goes from {min(numbers)} to {max(numbers)}; it must be 1 to {MAX_FRAMES}")
    frames: list[list[np.ndarray]] = [[] for _ in range(max(numbers))]
    for number, frame in zip(numbers, content["data"], strict=True):
        for person in frame["skeleton"]:
            values = np.asarray(person["pose"], np.float64).reshape(-1, 2)
            score = np.asarray(person.get("score", np.ones(len(values))), np.float64)
            missing = (score <= 0) | (score < min_score)  # a point at 0, 0 with score 0 is how this set says missing
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
            raise DataError(f"{path}: an annotation is of image {annotation['image_id']}, which is not in the file")
        values = np.asarray(annotation["keypoints"], np.float64).reshape(-1, 3)
        frames[place[annotation["image_id"]]].append(np.where(values[:, 2:] > 0, values[:, :2], np.nan))
    return _stack(path, frames)


_JSON: dict[str, Callable[[Path, Any, float], np.ndarray]] = {
    "smarthome": _read_smarthome,
    "kinetics": _read_kinetics,
    "coco": _read_coco,
}
KINDS = (*_JSON, "ntu", "ntu-npy", "csv", "npy")
"""Kinds of files that `read_points` knows."""


def _read_ntu(path: Path) -> np.ndarray:
    """Counts of frames, bodies and joints each stand on a line of their own, before what they count."""
    lines = iter(path.read_text(encoding="ascii").split("\n"))

    def following() -> list[str]:
        line = next(lines, None)
        if line is None:
            raise DataError(f"{path}: ends in the middle; it is cut short")
        return line.split()

    frames = []
    for _ in range(min(int(following()[0]), MAX_FRAMES)):
        people = []
        for _ in range(min(int(following()[0]), MAX_PEOPLE)):
            following()  # about the body: its number, confidences, lean
            joints = [following() for _ in range(min(int(following()[0]), MAX_PEOPLE))]
            people.append(np.asarray([[float(j[5]), float(j[6])] for j in joints]))
        frames.append(people)
    return _stack(path, frames, JOINTS["ntu"] if not any(frames) else None)


def _read_csv(path: Path, min_score: float) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        lacking = [name for name in ("frame", "joint", "x", "y") if name not in (rows.fieldnames or ())]
        if lacking:
            raise DataError(f"{path}: its first line must name the columns frame, joint, x, y; {lacking[0]} is missing")
        found = []
        for row in rows:
            place = tuple(int(row.get(key) or 0) for key in ("frame", "person", "joint"))
            limits = (MAX_FRAMES, MAX_PEOPLE, MAX_PEOPLE)
            if any(not 0 <= value < limit for value, limit in zip(place, limits, strict=True)):
                raise DataError(f"{path}:{rows.line_num}: frame, person and joint are {place}, out of range")
            if float(row.get("score") or 1.0) >= min_score:
                found.append((*place, float(row["x"]), float(row["y"])))
    if not found:
        raise DataError(f"{path}: holds no points")
    table = np.asarray(found)
    frame, person, joint = table[:, :3].astype(np.int64).T
    points = _empty(path, int(frame.max()) + 1, int(person.max()) + 1, int(joint.max()) + 1)
    points[frame, person, joint] = table[:, 3:]
    return points


def _read_array(path: Path, allow_pickle: bool, min_score: float) -> np.ndarray:
    try:
        # mapping compares the header with the size of the file; objects cannot be mapped
        content = np.load(path, mmap_mode=None if allow_pickle else "r", allow_pickle=allow_pickle)
    except ValueError as error:
        if re.search("pickle|Python objects", str(error)) and not allow_pickle:
            raise DataError(
                f"{path}: is a pickle, which can run code; if you trust it, convert it once: "
                "numpy.save(NEW, read_points(PATH, allow_pickle=True))"
            ) from error
        raise
    if content.dtype == object:
        return _ntu_bodies(path, content)
    if content.ndim == 3:
        content = content[:, None]
    if content.ndim != 4 or content.shape[3] not in (2, 3) or not content.size:
        raise DataError(f"{path}: has the shape {content.shape}; it must be [frames, J, 2] or [frames, people, J, 2]")
    points = content[..., :2].astype(np.float64)
    if content.shape[3] == 3:
        points[~(content[..., 2] >= min_score)] = np.nan
    return points


def _ntu_bodies(path: Path, content: np.ndarray) -> np.ndarray:
    bodies = content.item()
    names = sorted(name for name in bodies if str(name).startswith("rgb_body"))
    if not names:
        raise DataError(f"{path}: has no rgb_body0; it is not a skeleton file of NTU")
    return np.stack([np.asarray(bodies[name], np.float64) for name in names], 1)
