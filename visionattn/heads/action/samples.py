"""Synthetic video dataset whose classes can only be recognized with the pose.

Each clip shows several stick figures with the same limb colors in front of a moving texture. Every figure swings a
different limb. The class is the limb that one of them, the figure of interest, swings. Only its keypoints are given; in
the image it differs from the others only in the color of its head. A model that does not identify the figure of
interest reaches an accuracy of 1 / number of figures.
"""

import math
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.folders import cache_dir, is_current, new_folder

__all__ = ["LIMBS", "build_moving_figures", "draw_clip"]

VERSION = 1  # increase it whenever the drawing changes, so that caches are rebuilt
LIMBS = ("left arm", "right arm", "left leg", "right leg")
"""Classes in the order of the labels. Left and right are those of the figure, which faces the camera."""

COLORS = ((235, 60, 50), (60, 200, 70), (70, 110, 245), (240, 210, 50))  # RGB, of the limbs
HEADS = ((255, 90, 220), (70, 220, 230))  # RGB, of the figure of interest and of the others
REST = (0.05, 0.3)  # range of the outward angle of a resting limb from the vertical, in radians
SWING = ((1.0, 2.2), (1.0, 2.2), (0.7, 1.3), (0.7, 1.3))  # range of the angle of a swinging limb, in radians

_README = """Moving figures: clips made by `visionattn data moving-figures`
=================================================================

videos/{{train,val,test}}/*.avi (Motion JPEG, {size} x {size}, {frames} frames, 30 fps), poses/*/*.npy (keypoints
[frames, 13, 2] of the figure of interest, with the joints of Toyota Smarthome), {{train,val,test}}.csv
(video,skeleton,label): {train}, {val} and {test} clips with {figures} figures. classes.txt lists the class names.
Seed {seed}, recipe version {version}. All clips are drawn; no source material is used.
"""


def build_moving_figures(
    out_dir: str | Path | None = None,
    *,
    train: int = 2000,
    val: int = 200,
    test: int = 600,
    size: int = 48,
    frames: int = 14,
    figures: int = 2,
    seed: int = 0,
) -> Path:
    """Generate the clips and keypoints unless they exist already, and return their folder.

    Args:
        out_dir: output folder. Defaults to ``moving-figures`` in `cache_dir`.
        train: number of training clips, at least 1.
        val: number of validation clips, at least 1.
        test: number of test clips, at least 1.
        size: height and width in pixels, at least 32.
        frames: number of frames of a clip, at least 4.
        figures: number of figures in a clip, 1 to 4.
        seed: random seed.

    Returns:
        The folder.

    Raises:
        DataError: if an argument is out of range, or the folder cannot be written or contains other files.
    """
    for name, value, least, most in (
        ("train", train, 1, 10**6), ("val", val, 1, 10**6), ("test", test, 1, 10**6), ("size", size, 32, 1024),
        ("frames", frames, 4, 1000), ("figures", figures, 1, len(LIMBS)), ("seed", seed, 0, 2**31),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise DataError(f"moving figures: `{name}` must be a whole number in {least}..{most}, got {value!r}")
    target = Path(out_dir).expanduser() if out_dir is not None else cache_dir() / "moving-figures"
    stamp = {
        "data": "moving figures", "version": VERSION, "train": train, "val": val, "test": test, "size": size,
        "frames": frames, "figures": figures, "seed": seed,
    }  # fmt: skip
    if is_current(target, stamp):
        return target
    with new_folder(target, stamp) as folder:
        for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
            (folder / "videos" / split).mkdir(parents=True)
            (folder / "poses" / split).mkdir(parents=True)
            lines = []
            for index in range(count):
                rng = np.random.default_rng([seed, number, index])
                label = index % len(LIMBS)
                pictures, points = draw_clip(rng, label, size, frames, figures)
                name = f"{split}/{index:05d}"
                _write_video(folder / "videos" / f"{name}.avi", pictures)
                np.save(folder / "poses" / f"{name}.npy", points)
                lines.append(f"{name}.avi,{name}.npy,{label}")
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "classes.txt").write_text("\n".join(LIMBS) + "\n", encoding="utf-8")
        (folder / "README.txt").write_text(_README.format(**stamp), encoding="utf-8")
    return target


def draw_clip(
    rng: np.random.Generator, label: int, size: int, frames: int, figures: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one clip.

    Args:
        rng: random generator.
        label: the limb that the figure of interest swings, an index into `LIMBS`.
        size: height and width, in pixels.
        frames: number of frames.
        figures: number of figures, at most the number of limbs.

    Returns:
        RGB uint8 ``[frames, size, size, 3]``, and keypoints float32 ``[frames, 13, 2]`` in pixels.
    """
    cv2 = require("cv2")
    others = rng.permutation([limb for limb in range(len(LIMBS)) if limb != label])[: figures - 1]
    limbs = [label, *others]
    height = size * rng.uniform(0.5, 0.6)
    centers = _places(rng, figures, size, height)
    poses = [_swing(rng, limb, frames, height) + center for limb, center in zip(limbs, centers, strict=True)]
    order = rng.permutation(figures)
    shades = rng.uniform(0.85, 1.1, (figures, 1))
    pictures = _texture(rng, size, frames)
    scale = 16  # OpenCV takes subpixel coordinates as fixed-point integers
    width = max(2, round(size / 20))
    for number, picture in enumerate(pictures):
        for figure in order:
            joints = np.rint(poses[figure][number] * scale).astype(int)
            colors = np.clip(np.array([*COLORS, HEADS[min(figure, 1)]]) * shades[figure], 0, 255)
            _draw_figure(cv2, picture, joints, colors.tolist(), width, round(height * 0.1 * scale))
    return pictures, poses[0].astype(np.float32)


def _places(rng: np.random.Generator, figures: int, size: int, height: float) -> np.ndarray:
    """Hip positions ``[figures, 2]`` with as much distance between the figures as the frame allows."""
    best, most = None, -1.0
    margin = height * 0.35
    for _ in range(20):
        x = rng.uniform(margin, size - margin, figures)
        y = rng.uniform(height * 0.55, size - height * 0.45, figures)
        places = np.stack([x, y], 1)
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(figures) * size
        if apart.min() > most:
            best, most = places, apart.min()
        if most > height * 0.6:
            break
    return best


def _swing(rng: np.random.Generator, moving: int, frames: int, height: float) -> np.ndarray:
    """Joints relative to the hips ``[frames, 13, 2]``, in the order of Toyota Smarthome, with one swinging limb."""
    angles = rng.uniform(*REST, len(LIMBS))[None].repeat(frames, 0)
    phase = rng.uniform(0, 2 * math.pi)
    turns = rng.uniform(1.0, 1.6)
    wave = 0.5 - 0.5 * np.cos(phase + 2 * math.pi * turns * np.arange(frames) / frames)
    least, most = SWING[moving]
    angles[:, moving] = least + (most - least) * wave
    joints = np.zeros((frames, 13, 2))
    for side, sign in enumerate((1, -1)):  # the figure's left side is on the right of the image
        shoulder, hip = np.array([sign * 0.1, -0.32]) * height, np.array([sign * 0.07, 0.0]) * height
        for limb, root, length, places in (
            (side, shoulder, 0.36, (11 - side, 9 - side, 7 - side)),
            (2 + side, hip, 0.42, (5 - side, 3 - side, 1 - side)),
        ):
            way = np.stack([sign * np.sin(angles[:, limb]), np.cos(angles[:, limb])], 1) * length * height
            for share, joint in zip((0, 0.5, 1), places, strict=True):
                joints[:, joint] = root + share * way
    joints[:, 12] = np.array([0, -0.46]) * height
    return joints


def _draw_figure(cv2, picture: np.ndarray, joints: np.ndarray, colors: list, width: int, head: int) -> None:
    kwargs = dict(lineType=cv2.LINE_AA, shift=4)
    neck, hips = (joints[10] + joints[11]) // 2, (joints[4] + joints[5]) // 2
    cv2.line(picture, neck.tolist(), hips.tolist(), (150, 150, 150), width + 1, **kwargs)
    for limb, (start, end) in enumerate(((11, 7), (10, 6), (5, 1), (4, 0))):
        cv2.line(picture, joints[start].tolist(), joints[end].tolist(), colors[limb], width, **kwargs)
    cv2.circle(picture, joints[12].tolist(), head, colors[4], -1, **kwargs)


def _texture(rng: np.random.Generator, size: int, frames: int) -> np.ndarray:
    """Dark background texture of moving blobs, uint8 ``[frames, size, size, 3]``."""
    cv2 = require("cv2")
    coarse = rng.uniform(0, 80, (10, 10, 3)).astype(np.float32)
    wide = cv2.resize(coarse, (3 * size, 3 * size), interpolation=cv2.INTER_CUBIC)
    start, speed = rng.uniform(size * 0.8, size * 1.2, 2), rng.uniform(-1.0, 1.0, 2)
    pictures = []
    for number in range(frames):
        y, x = np.clip(np.rint(start + speed * number), 0, 2 * size).astype(int)
        noise = rng.normal(0, 6, (size, size, 3))
        pictures.append(wide[y : y + size, x : x + size] + noise)
    return np.clip(np.stack(pictures), 0, 255).astype(np.uint8)


def _write_video(path: Path, pictures: np.ndarray) -> None:
    cv2 = require("cv2")
    height, width = pictures.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, (width, height))
    if not writer.isOpened():
        raise DataError(f"{path}: the video cannot be written")
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
