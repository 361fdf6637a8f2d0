"""Random street scenes for the simulated LiDAR: cars, pedestrians, cyclists and scenery.

Objects are composed of several shapes, so their points do not form a perfect box, and they occlude one another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visionattn.heads.lidar.data.boxes import bev_overlaps, count_points
from visionattn.heads.lidar.simulate.rays import Body, Convex, Cylinder, Ellipsoid, Hits, Lidar, Material, cast, prism

__all__ = ["CLASSES", "SimulatedScan", "simulate_scan"]

CLASSES = ("car", "pedestrian", "cyclist")
MIN_POINTS = 5
"""Minimum number of points of a labeled object; objects with fewer are ignored."""

_GLASS = Material(0.05, 0.03, loss=0.6)
_TYRE, _METAL = Material(0.08, 0.02), Material(0.35, 0.1)
_CLOTH, _SKIN = Material(0.35, 0.12), Material(0.3, 0.05)
_WALL, _BARK, _LEAVES = Material(0.3, 0.06), Material(0.25, 0.06), Material(0.3, 0.1, density=2.0)


@dataclass(frozen=True)
class SimulatedScan:
    """One revolution of the sensor with its ground truth.

    Attributes:
        points: float32 ``[N, 4]``: x, y, z, intensity in [0, 1], in the sensor frame (the ground is near z = -height).
        boxes: float32 ``[M, 7]``, all objects with at least one point, see `visionattn.heads.lidar.data.boxes`.
        labels: int64 ``[M]``, indices into `CLASSES`.
        counts: int64 ``[M]``, number of points inside each box.
        visible: float32 ``[M]``, fraction of each object's rays that are not occluded.
    """

    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    visible: np.ndarray


def simulate_scan(seed: int | list[int], lidar: Lidar | None = None, extent: float = 55.0) -> SimulatedScan:
    """Generate a random street and scan it; equal arguments give equal points.

    Args:
        seed: random seed.
        lidar: the sensor. Defaults to ``Lidar()``.
        extent: maximum distance of objects from the sensor, in meters.
    """
    lidar = lidar or Lidar()
    rng = np.random.default_rng(seed)
    scene = _Scene(rng, lidar.height, extent)
    hits = cast(lidar, scene.ground, scene.bodies, rng, scene.shade)
    points, owner = _measure(lidar, hits, rng)
    boxes = np.array(scene.boxes, np.float64).reshape(-1, 7)
    counts = count_points(points, boxes)
    seen = np.bincount(hits.owner[(hits.owner >= 0) & np.isfinite(hits.distance)], minlength=len(boxes))
    alone = np.array([hits.alone.get(n, 0) for n in range(len(boxes))])
    kept = np.flatnonzero((counts > 0) & (np.bincount(owner[owner >= 0], minlength=len(boxes)) > 0))
    return SimulatedScan(
        points,
        boxes[kept].astype(np.float32),
        np.array(scene.labels, np.int64)[kept],
        counts[kept],
        (seen[kept] / np.maximum(alone[kept], 1)).astype(np.float32),
    )


def _measure(lidar: Lidar, hits: Hits, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Apply noise and dropout: points ``[N, 4]`` and the body index of each ``[N]``."""
    hit = np.isfinite(hits.distance)
    distance, cosine = hits.distance[hit], hits.cosine[hit]
    chance = lidar.dropout + 0.5 * np.clip(0.04 - cosine, 0, 0.04) / 0.04 + 0.3 * (distance / lidar.max_range) ** 4
    back = rng.random(len(distance)) >= 1 - (1 - chance.clip(0, 1)) * (1 - hits.loss[hit])
    reflectance = hits.reflectance[hit]
    intensity = rng.normal(reflectance[:, 0], reflectance[:, 1]) * (0.7 + 0.3 * cosine)
    distance = distance + rng.normal(0, lidar.noise, len(distance))
    xyz = lidar.directions[hit] * distance[:, None]
    points = np.concatenate([xyz, intensity.clip(0, 1)[:, None]], 1)[back]
    return points.round(3).astype(np.float32), hits.owner[hit][back]


class _Scene:
    """A random street with objects; the street's frame is rotated by ``heading``."""

    def __init__(self, rng: np.random.Generator, height: float, extent: float) -> None:
        self.rng, self.extent = rng, extent
        self.heading = rng.uniform(-np.pi, np.pi)
        self.boxes: list[list[float]] = []
        self.labels: list[int] = []
        self.bodies: list[Body] = []
        self.taken = [[0.0, 0.0, 0.0, 6.0, 3.0, 2.0, self.heading]]  # the vehicle that carries the sensor
        self.half = rng.uniform(3.5, 8.0)  # half the width of the road
        self.offset = rng.uniform(-0.5, 0.5) * self.half
        self.ground, self.shade = _surface(rng, height, self)
        self._scenery()
        self._objects()

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert x and y in the sensor frame to coordinates along and across the street."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        return x * c + y * s, y * c - x * s + self.offset

    def place(self, along: float, across: float) -> tuple[float, float, float]:
        """Convert coordinates along and across the street to x, y and the height of the ground."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        across -= self.offset
        x, y = along * c - across * s, along * s + across * c
        return x, y, float(self.ground(np.array(x), np.array(y)))

    def free(self, box: list[float], gap: float) -> bool:
        """Return True and reserve the space of the box if it is free."""
        grown = [*box[:3], box[3] + gap, box[4] + gap, *box[5:]]
        if np.hypot(box[0], box[1]) > self.extent * 1.4 or bev_overlaps(np.array([grown]), np.array(self.taken)).any():
            return False
        self.taken.append(box)
        return True

    def _scenery(self) -> None:
        rng, reach = self.rng, self.extent * 1.2
        for side in (-1, 1):
            line = side * (self.half + rng.uniform(2.5, 14))
            at = -reach
            while at < reach:  # buildings with gaps between them
                length, depth, height = rng.uniform(6, 28), rng.uniform(5, 12), rng.uniform(3, 12)
                if rng.random() < 0.65:
                    middle = line + side * (depth / 2 + rng.uniform(0, 2))
                    self._block(at + length / 2, middle, (length, depth, height), _WALL)
                at += length + rng.exponential(6)
            at, hedge = rng.uniform(-reach, reach, 2)
            while rng.random() < 0.97 and at < hedge:  # a row of bushes
                size = np.array([rng.uniform(0.8, 1.4), rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.3)])
                x, y, z = self.place(at, side * (self.half + 2.2) + rng.uniform(-0.2, 0.2))
                if self.free([x, y, z, *size * 2, self.heading], -0.5):
                    middle = np.array([x, y, z + size[2] * 0.7])
                    self.bodies.append(Body([Ellipsoid(middle, size, _LEAVES, self.heading)]))
                at += rng.uniform(1.2, 2.5)
        for _ in range(rng.poisson(14)):
            side, along = rng.choice([-1, 1]), rng.uniform(-reach, reach)
            x, y, z = self.place(along, side * (self.half + rng.uniform(0.4, 8)))
            kind = rng.random()
            if kind < 0.4:
                radius, height = rng.uniform(0.05, 0.15), rng.uniform(2.5, 8)
                if self.free([x, y, z, 0.4, 0.4, height, 0], 0.3):
                    self.bodies.append(Body([Cylinder(np.array([x, y]), radius, z, z + height, _METAL)]))
            elif kind < 0.75:
                self._tree(x, y, z)
            elif kind < 0.9:
                size = rng.uniform(0.4, 1.6, 3)
                if self.free([x, y, z, *size * 2, 0], 0.2):
                    self.bodies.append(Body([Ellipsoid(np.array([x, y, z + size[2] * 0.6]), size, _LEAVES)]))
            else:  # boxes, bins, signs: as large as labeled objects, but scenery
                self._block(along, side * (self.half + rng.uniform(0.5, 4)), tuple(rng.uniform(0.4, 1.6, 3)), _METAL)

    def _block(self, along: float, across: float, size: tuple[float, ...], material: Material) -> None:
        x, y, z = self.place(along, across)
        heading = self.heading + self.rng.normal(0, 0.02)
        if self.free([x, y, z, *size, heading], 0.3):
            low = 1.0  # extends below the uneven ground
            whole = (size[0], size[1], size[2] + low)
            self.bodies.append(Body([prism((x, y, z + (size[2] - low) / 2), whole, heading, material)]))

    def _tree(self, x: float, y: float, z: float) -> None:
        rng = self.rng
        trunk, radius, crown = rng.uniform(1.8, 3.5), rng.uniform(0.08, 0.25), rng.uniform(1.2, 3)
        if self.free([x, y, z, 0.8, 0.8, trunk, 0], 0.3):
            shapes: list = [Cylinder(np.array([x, y]), radius, z, z + trunk + crown, _BARK)]
            for _ in range(3):
                middle = np.array([x, y, z + trunk + crown * 0.8]) + rng.uniform(-0.4, 0.4, 3) * crown
                shapes.append(Ellipsoid(middle, crown * rng.uniform(0.6, 1.0, 3), _LEAVES))
            self.bodies.append(Body(shapes))

    def _objects(self) -> None:
        rng, reach = self.rng, self.extent
        for _ in range(rng.poisson(10)):  # parked along the curb, some perpendicular to it
            side = rng.choice([-1, 1])
            turn = np.pi / 2 if rng.random() < 0.15 else 0.0
            self._add(0, rng.uniform(-reach, reach), side * (self.half + rng.uniform(-1.1, 0.6)), turn)
        for _ in range(rng.poisson(6)):  # in the lanes
            self._add(0, rng.uniform(-reach, reach), rng.choice([-1, 1]) * self.half * rng.uniform(0.3, 0.6), 0.0)
        for _ in range(rng.poisson(2)):  # in yards and at intersections
            self._add(0, rng.uniform(-reach, reach), rng.uniform(-20, 20), rng.uniform(-np.pi, np.pi))
        reach = min(reach, 45.0)  # beyond that, hardly any ray hits a person
        for _ in range(rng.poisson(9)):
            across = rng.choice([-1, 1]) * (self.half + rng.uniform(0.8, 3.5))
            if rng.random() < 0.25:
                across = rng.uniform(-self.half, self.half)
            self._add(1, rng.uniform(-reach, reach), across, rng.uniform(-np.pi, np.pi))
        for _ in range(rng.poisson(6)):
            across = rng.choice([-1, 1]) * self.half * rng.uniform(0.5, 1.2)
            self._add(2, rng.uniform(-reach, reach), across, rng.normal(0, 0.15))

    def _add(self, label: int, along: float, across: float, turn: float) -> None:
        rng = self.rng
        x, y, z = self.place(along, across)
        heading = self.heading + turn + rng.normal(0, 0.03) + np.pi * rng.integers(2)
        heading = float((heading + np.pi) % (2 * np.pi) - np.pi)
        mean, spread = _SIZES[label]
        length, width, height = np.clip(rng.normal(mean, spread), mean - 2 * spread, mean + 2 * spread)
        box = [x, y, z + height / 2, length, width, height, heading]
        if self.free(box, 0.3):
            self.bodies.append(Body(_BUILDERS[label](rng, box), len(self.boxes)))
            self.boxes.append(box)
            self.labels.append(label)


_SIZES = (
    (np.array([4.2, 1.75, 1.55]), np.array([0.4, 0.12, 0.12])),
    (np.array([0.8, 0.62, 1.72]), np.array([0.12, 0.08, 0.1])),
    (np.array([1.78, 0.62, 1.72]), np.array([0.08, 0.06, 0.08])),
)

_Shape = Convex | Cylinder | Ellipsoid
_Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _at(box: list[float], along: float, across: float, up: float) -> np.ndarray:
    """Position in a box, relative to the center of its bottom face."""
    c, s = np.cos(box[6]), np.sin(box[6])
    return np.array([box[0] + along * c - across * s, box[1] + along * s + across * c, box[2] - box[5] / 2 + up])


def _car(rng: np.random.Generator, box: list[float]) -> list[_Shape]:
    length, width, height, heading = box[3:]
    paint = Material(rng.uniform(0.1, 0.6), 0.06, loss=rng.uniform(0, 0.15))
    clearance, waist = 0.18, height * rng.uniform(0.52, 0.6)
    body = (length, width, waist - clearance)
    shapes: list[_Shape] = [
        prism(_at(box, 0, 0, (waist + clearance) / 2), body, heading, paint, (0.12, 0.08, 0.06), rng.uniform(0.15, 0.3))
    ]
    hood, tail = [(0.24, 0.12), (0.24, 0.02), (0.16, 0.0), (0.26, 0.2)][rng.integers(4)]  # fractions of the length
    front, back = length / 2 - hood * length, -length / 2 + tail * length + 0.04
    cabin = (front - back, width - 0.1, height - waist)
    lean = (rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.6), 0.2)
    middle = _at(box, (front + back) / 2, 0, (height + waist) / 2)
    shapes.append(prism(middle, (cabin[0], cabin[1], cabin[2] - 0.08), heading, _GLASS, lean))
    roof = (cabin[0] - lean[0] - lean[1], cabin[1] - 0.35, 0.09)
    shapes.append(prism(_at(box, (front + back - lean[0] + lean[1]) / 2, 0, height - 0.045), roof, heading, paint))
    for along in (0.31, -0.3):
        for side in (-1, 1):
            wheel = _at(box, along * length, side * (width / 2 - 0.12), 0.32)
            shapes.append(prism(wheel, (0.62, 0.2, 0.64), heading, _TYRE, bevel=0.0))
    return shapes


def _person(rng: np.random.Generator, box: list[float], low: float, lean: float) -> list[_Shape]:
    """Torso, arms and head between the height ``low`` and the top of the box."""
    width, height, heading = box[4], box[5], box[6]
    top = height - 0.13
    torso = (top - low) * 0.55
    shapes: list[_Shape] = [
        Ellipsoid(_at(box, lean / 2, 0, low + torso * 0.9), np.array([0.15, width * 0.34, torso]), _CLOTH, heading),
        Ellipsoid(_at(box, lean, 0, top), np.array([0.11, 0.09, 0.13]), _SKIN, heading),
    ]
    for side in (-1, 1):
        swing = rng.uniform(-0.12, 0.12) + lean / 2
        place = _at(box, swing, side * width * 0.41, low + torso)
        shapes.append(Ellipsoid(place, np.array([0.1, width * 0.085, 0.3]), _CLOTH, heading))
    return shapes


def _pedestrian(rng: np.random.Generator, box: list[float]) -> list[_Shape]:
    stride = rng.uniform(0, box[3] / 2 - 0.1)
    shapes = _person(rng, box, box[5] * 0.48, 0.0)
    for side in (-1, 1):
        for share, reach in ((0.0, 0.5), (0.5, 1.0)):  # the lower leg is further from the body's axis than the thigh
            place = _at(box, side * stride * (1 - (share + reach) / 2), side * box[4] * 0.18, 0)
            low, high = place[2] + box[5] * 0.5 * share, place[2] + box[5] * 0.5 * reach
            shapes.append(Cylinder(place[:2], 0.075, low, high, _CLOTH))
    return shapes


def _cyclist(rng: np.random.Generator, box: list[float]) -> list[_Shape]:
    heading, wheel = box[6], 0.34
    shapes = _person(rng, box, 0.85, rng.uniform(0.1, 0.35))
    mesh = Material(0.2, 0.1, loss=0.5)  # spokes let most rays through
    for side in (-1, 1):
        shapes.append(prism(_at(box, side * (box[3] / 2 - wheel), 0, wheel), (0.62, 0.05, 0.66), heading, mesh))
        shapes.append(Cylinder(_at(box, 0.1, side * 0.12, 0)[:2], 0.07, box[2] - 0.6, box[2] + 0.1, _CLOTH))
    shapes.append(prism(_at(box, 0, 0, 0.65), (box[3] - 0.8, 0.06, 0.4), heading, _METAL))
    shapes.append(prism(_at(box, box[3] / 2 - 0.5, 0, 1.0), (0.06, box[4] * 0.9, 0.06), heading, _METAL))
    return shapes


_BUILDERS = (_car, _pedestrian, _cyclist)


def _surface(rng: np.random.Generator, height: float, scene: _Scene) -> tuple[_Field, _Field]:
    """Height of the ground (slope, waves and curb) and its reflectance (asphalt, lane markings, roadside)."""
    slope = rng.normal(0, 0.008, 2)
    waves = [(rng.uniform(0.02, 0.08), rng.uniform(-0.15, 0.15, 2), rng.uniform(0, 6.3)) for _ in range(4)]
    curb, road, beside = rng.uniform(0.05, 0.15), rng.uniform(0.2, 0.32), rng.uniform(0.25, 0.4)

    def ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z = -height + slope[0] * x + slope[1] * y
        for size, (fx, fy), phase in waves:
            z = z + size * (np.sin(fx * x + fy * y + phase) - np.sin(phase))
        across = np.abs(scene.local(x, y)[1])
        return z + curb * np.clip((across - scene.half) / 0.1, 0, 1)

    def shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along, across = scene.local(x, y)
        line = (np.abs(across) < 0.07) & (along % 6 < 3)
        return np.where(line, 0.65, np.where(np.abs(across) < scene.half, road, beside))

    return ground, shade
