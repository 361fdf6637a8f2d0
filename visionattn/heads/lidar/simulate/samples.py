"""Sample data for detection in point clouds, made by a simulated LiDAR: nothing has to be fetched."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.simulate.rays import Lidar
from visionattn.heads.lidar.simulate.scenes import CLASSES, LEAST_POINTS, SimulatedScan, simulate_scan
from visionattn.io.folders import cache_dir, is_current, new_folder, write_json

__all__ = ["build_lidar_samples", "difficulty", "scan_label"]

VERSION = 1  # raise it with every change of what is simulated, so that caches are rebuilt

_README = """Simulated LiDAR scans: sample data for visionattn, made by `visionattn data lidar-samples`
====================================================================================

{{train,val}}/NAME.bin: float32 x, y, z, intensity (0..1), x forward, y left, z up, the sensor at the origin and the
ground near z = -{height}. {{train,val}}/NAME.json: boxes (x, y, z of the centre, length, width, height, heading
counter-clockwise from +x). manifest.json: classes, sensor, and counts of each split.
{train} train and {val} val scans of {beams} beams and {azimuths} measurements each in a turn, to {max_range} m; seed
{seed}, recipe version {version}.

Every scan is of another random street. Objects with at least {least} points within their box are labelled; those with
fewer have "ignore": true, and count neither way. "difficulty" is 0 (at least 40 points and 70 % of it in view), 1 (at
least 15 points and 40 %) or 2; "visible" is the share of the object's rays that nothing else stops.

Nothing here was recorded: what a detector reaches on these scans says nothing about a real sensor on a real street.
"""


def build_lidar_samples(
    out_dir: str | Path | None = None,
    *,
    train: int = 240,
    val: int = 60,
    lidar: Lidar | None = None,
    extent: float = 50.0,
    seed: int = 0,
) -> Path:
    """Make the scans, or find them made, and return their folder; `read_point_folder` reads its ``train`` and ``val``.

    The same arguments give the same scans. A build that is killed leaves nothing behind in its place.

    Args:
        out_dir: the folder; ``lidar-samples`` in `cache_dir` when None.
        train: number of scans of this split, at least 1.
        val: likewise.
        lidar: the sensor; one of 32 beams and 1024 measurements in a turn when None.
        extent: how far from the sensor objects are, in metres, at least 10.
        seed: of everything random, not negative.

    Raises:
        DataError: an argument is out of range, or the folder cannot be written or holds other files.
    """
    for name, value, least in (("train", train, 1), ("val", val, 1), ("seed", seed, 0), ("extent", extent, 10)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or name == "extent") or not value >= least:
            raise DataError(f"LiDAR samples: {name} is {value!r}; give a number of at least {least}")
    lidar = lidar or Lidar(beams=32, azimuths=1024, max_range=70.0)
    sensor = {name: getattr(lidar, name) for name in ("beams", "azimuths", "height", "max_range", "noise", "dropout")}
    target = Path(out_dir).expanduser() if out_dir is not None else cache_dir() / "lidar-samples"
    stamp: dict[str, Any] = {
        "data": "LiDAR samples", "version": VERSION, "train": train, "val": val, "extent": extent, "seed": seed,
        "sensor": sensor,
    }  # fmt: skip
    if is_current(target, stamp):
        return target
    with new_folder(target, stamp) as folder:
        manifest: dict[str, Any] = {
            "classes": list(CLASSES), "columns": ["x", "y", "z", "intensity"], "intensity_max": 1.0,
            "frame_axes": "x forward, y left, z up", "sensor": sensor, "seed": seed, "splits": {},
        }  # fmt: skip
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            (folder / split).mkdir()
            manifest["splits"][split] = _write_split(folder / split, count, [seed, number], lidar, extent)
        write_json(folder / "manifest.json", manifest)
        text = _README.format(**{**stamp, **sensor}, least=LEAST_POINTS)
        (folder / "README.txt").write_text(text, encoding="utf-8")
    return target


def _write_split(folder: Path, count: int, seed: list[int], lidar: Lidar, extent: float) -> dict[str, Any]:
    boxes, points = dict.fromkeys(CLASSES, 0), 0
    for number in range(count):
        scan = simulate_scan([*seed, number], lidar, extent)
        write_points(folder / f"{number:06d}.bin", scan.points)
        label = scan_label(scan)
        write_json(folder / f"{number:06d}.json", label)
        points += len(scan.points)
        for entry in label["boxes"]:
            boxes[entry["class"]] += "ignore" not in entry
    return {"scans": count, "points": points, "boxes": boxes}


def difficulty(counts: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """0, 1 or 2 from the points within boxes and the shares of them in view, int64 ``[M]``."""
    easy = (counts >= 40) & (visible >= 0.7)
    moderate = (counts >= 15) & (visible >= 0.4)
    return np.where(easy, 0, np.where(moderate, 1, 2)).astype(np.int64)


def scan_label(scan: SimulatedScan) -> dict[str, Any]:
    """The content of a scan's JSON file, see `visionattn.heads.lidar.data.folders`."""
    levels = difficulty(scan.counts, scan.visible)
    entries = []
    for box, label, count, visible, level in zip(
        scan.boxes, scan.labels, scan.counts, scan.visible, levels, strict=True
    ):
        entry = {
            "class": CLASSES[label], "box": [round(float(v), 4) for v in box], "num_points": int(count),
            "visible": round(float(visible), 3), "difficulty": int(level),
        }  # fmt: skip
        entries.append(entry if count >= LEAST_POINTS else {**entry, "ignore": True})
    return {
        "boxes": entries, "columns": ["x", "y", "z", "intensity"], "intensity_max": 1.0,
        "frame_axes": "x forward, y left, z up", "num_points": len(scan.points),
    }  # fmt: skip
