"""Lists of labelled videos with key points: a line ``video,skeleton,label`` for each, as PoseAwareVT has them."""

from dataclasses import dataclass
from pathlib import Path

from visionattn.errors import DataError
from visionattn.io.names import place

__all__ = ["LabelledVideo", "read_action_list"]

MAX_DIGITS = 6
"""Of a label. Without names for the classes, as many as the largest label says are made."""


@dataclass(frozen=True)
class LabelledVideo:
    """A video, the file of its key points (None where the list has none), and its class."""

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
    """Read a list.

    Args:
        path: the list. Lines are ``video,skeleton,label``, or ``video,label`` without poses; an empty skeleton means
            that a video has none. Empty lines do not count.
        videos: folder that the names of videos start from and stay below; without one they may be absolute.
        points: likewise of skeletons.
        separator: between the parts.
        classes: labels must be below it.

    Raises:
        DataError: the file is missing or empty, or a line is wrong; the message has its number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the list of videos cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a list of videos in UTF-8") from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) not in (2, 3) or not parts[0]:
            raise DataError(f"{path}:{number}: {line[:80]!r} is not video{separator}skeleton{separator}label")
        if not parts[-1].isdecimal() or len(parts[-1]) > MAX_DIGITS:
            raise DataError(f"{path}:{number}: the label {parts[-1]!r:.80} is not a number from 0 to 999999")
        label = int(parts[-1])
        if classes is not None and label >= classes:
            raise DataError(f"{path}:{number}: has the label {label}, but there are {classes} classes")
        skeleton = parts[1] if len(parts) == 3 else ""
        where = f"{path}:{number}"
        video = place(parts[0], videos or None, where)
        items.append(LabelledVideo(video, place(skeleton, points or None, where) if skeleton else None, label))
    if not items:
        raise DataError(f"{path}: names no videos")
    return items
