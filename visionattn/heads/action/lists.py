"""Annotation lists of labeled videos with keypoints, one line ``video,skeleton,label`` each, as in PoseAwareVT."""

from dataclasses import dataclass
from pathlib import Path

from visionattn.errors import DataError
from visionattn.io.names import place

__all__ = ["LabelledVideo", "read_action_list"]

MAX_DIGITS = 6
"""Maximum number of digits of a label, since class names are generated up to the largest label."""


@dataclass(frozen=True)
class LabelledVideo:
    """A video, its keypoint file (None if the list has none), and its class label."""

    video: Path
    points: Path | None
    label: int


def read_action_list(
    path: str | Path,
    videos: str | Path = "",
    points: str | Path = "",
    separator: str = ",",
    classes: int | None = None,
) -> list[LabelledVideo]:
    """Read an annotation list.

    Args:
        path: the list. Lines are ``video,skeleton,label``, or ``video,label`` without poses; an empty skeleton means
            that the video has none. Empty lines are skipped.
        videos: folder of the videos, which paths must not leave; without a folder, paths may be absolute.
        points: folder of the skeletons, likewise.
        separator: field separator.
        classes: number of classes; labels must be below it. None allows any label.

    Raises:
        DataError: if the file is missing or empty, or a line is malformed; the message has the line number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the video list cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the video list must be text in UTF-8") from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) not in (2, 3) or not parts[0]:
            raise DataError(f"{path}:{number}: must be video{separator}skeleton{separator}label, got {line[:80]!r}")
        if not parts[-1].isdecimal() or len(parts[-1]) > MAX_DIGITS:
            raise DataError(f"{path}:{number}: label must be in 0..999999, got {parts[-1]!r:.80}")
        label = int(parts[-1])
        if classes is not None and label >= classes:
            raise DataError(f"{path}:{number}: label must be below the number of classes {classes}, got {label}")
        skeleton = parts[1] if len(parts) == 3 else ""
        where = f"{path}:{number}"
        video = place(parts[0], videos or None, where)
        items.append(LabelledVideo(video, place(skeleton, points or None, where) if skeleton else None, label))
    if not items:
        raise DataError(f"{path}: contains no videos")
    return items
