"""Casts the rays of a spinning LiDAR into a scene of simple shapes; NumPy, one scan well under a second.

A shape is tested only against the columns of rays whose azimuth can meet it. What is nearest wins, which is what
makes occlusion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

__all__ = ["Body", "Convex", "Cylinder", "Ellipsoid", "Hits", "Lidar", "Material", "cast", "prism"]


@dataclass(frozen=True)
class Lidar:
    """A spinning sensor at the origin.

    Attributes:
        beams: number of lasers: 64 as Velodyne's HDL-64E (2 to -24.3 degrees, denser in the upper half), any other
            number spread evenly over 10.7 to -30.7 degrees as those of the HDL-32E.
        azimuths: measurements of each in a turn.
        height: of the sensor above the ground, in metres.
        max_range: metres beyond which nothing returns.
        noise: standard deviation of the range, in metres.
        dropout: share of returns that are lost anywhere; more are lost far away and at grazing angles.
    """

    beams: int = 64
    azimuths: int = 1800
    height: float = 1.73
    max_range: float = 80.0
    noise: float = 0.02
    dropout: float = 0.06

    def __post_init__(self) -> None:
        if self.beams < 1 or self.azimuths < 8:
            raise ValueError(f"beams={self.beams} must be at least 1, and azimuths={self.azimuths} at least 8")
        if not (self.height > 0 and self.max_range > 1 and self.noise >= 0 and 0 <= self.dropout < 1):
            raise ValueError(
                f"height={self.height} must be above 0, max_range={self.max_range} above 1, noise={self.noise} at "
                f"least 0, dropout={self.dropout} in 0..1"
            )

    @cached_property
    def elevation(self) -> np.ndarray:
        """Of each beam in radians, the highest first, float64 ``[beams]``."""
        if self.beams == 64:
            return np.radians(np.concatenate([np.linspace(2, -8.33, 32), np.linspace(-8.83, -24.33, 32)]))
        return np.radians(np.linspace(10.67, -30.67, self.beams))

    @cached_property
    def azimuth(self) -> np.ndarray:
        """Of each column in radians, rising from -pi, float64 ``[azimuths]``."""
        return -np.pi + 2 * np.pi * (np.arange(self.azimuths) + 0.5) / self.azimuths

    @cached_property
    def directions(self) -> np.ndarray:
        """Unit vectors, float64 ``[beams, azimuths, 3]``."""
        flat = np.cos(self.elevation)[:, None]
        x, y = flat * np.cos(self.azimuth), flat * np.sin(self.azimuth)
        return np.stack([x, y, np.broadcast_to(np.sin(self.elevation)[:, None], x.shape)], -1)


@dataclass(frozen=True)
class Material:
    """What a surface gives back.

    Attributes:
        reflectance: mean intensity, 0..1.
        spread: its standard deviation.
        loss: share of returns that do not come back, as of glass.
        density: of a medium that rays enter, such as leaves: hits per metre; 0 for a surface.
    """

    reflectance: float
    spread: float = 0.05
    loss: float = 0.0
    density: float = 0.0


@dataclass(frozen=True)
class Convex:
    """What lies below all of some planes, ``normals [P, 3] . x <= offsets [P]``; within a circle seen from above."""

    normals: np.ndarray
    offsets: np.ndarray
    centre: np.ndarray
    radius: float
    material: Material

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where rays ``[..., 3]`` from the origin enter and leave, and the cosine of incidence; enter > leave: miss."""
        speed = directions @ self.normals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            at = self.offsets / speed
        enters = np.where(speed < 0, at, -np.inf)
        leave = np.where(speed > 0, at, np.inf).min(-1)
        # A ray along a plane and outside of it never comes in.
        outside = ((speed == 0) & (self.offsets < 0)).any(-1)
        face = enters.argmax(-1)[..., None]
        enter = np.take_along_axis(enters, face, -1)[..., 0]
        cosine = -np.take_along_axis(speed, face, -1)[..., 0]
        return np.where(outside, np.inf, enter), leave, cosine


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder between two heights, without lids."""

    centre: np.ndarray
    radius: float
    low: float
    high: float
    material: Material

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Convex.cross`."""
        dx, dy, dz = np.moveaxis(directions, -1, 0)
        a = dx * dx + dy * dy
        b = dx * self.centre[0] + dy * self.centre[1]
        root = b * b - a * (self.centre[0] ** 2 + self.centre[1] ** 2 - self.radius**2)
        enter = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        z = np.where(np.isfinite(enter), enter, 0) * dz
        enter = np.where((z >= self.low) & (z <= self.high), enter, np.inf)
        return enter, np.full_like(enter, np.inf), np.sqrt(np.maximum(root, 0) / a) / self.radius


@dataclass(frozen=True)
class Ellipsoid:
    """An upright ellipsoid; ``radii`` across and up, turned about no axis but z."""

    centre: np.ndarray
    radii: np.ndarray
    material: Material
    heading: float = 0.0

    @property
    def radius(self) -> float:
        """Of a circle around it, seen from above."""
        return float(self.radii[:2].max())

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Convex.cross`."""
        cosine, sine = np.cos(self.heading), np.sin(self.heading)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        d, c = directions @ turn / self.radii, self.centre @ turn / self.radii
        a, b = (d * d).sum(-1), d @ c
        root = b * b - a * (c @ c - 1)
        half = np.sqrt(np.maximum(root, 0)) / a
        return np.where(root > 0, b / a - half, np.inf), b / a + half, np.sqrt(np.maximum(root, 0) / a).clip(0, 1)


@dataclass(frozen=True)
class Body:
    """Shapes that belong together; ``number`` tells an object from others, -1 is scenery."""

    shapes: Sequence[Convex | Cylinder | Ellipsoid]
    number: int = -1


@dataclass
class Hits:
    """What comes back, for each ray ``[beams, azimuths]``.

    Attributes:
        distance: metres, infinite where nothing is.
        reflectance: mean and spread of the material at the hit, ``[..., 2]``.
        loss: chance that it is lost.
        cosine: of the angle of incidence.
        owner: number of the body; -1 scenery, -2 ground or nothing.
        alone: rays that would meet each numbered body if it were alone.
    """

    distance: np.ndarray
    reflectance: np.ndarray
    loss: np.ndarray
    cosine: np.ndarray
    owner: np.ndarray
    alone: dict[int, int] = field(default_factory=dict)


def prism(
    centre: Sequence[float],
    size: Sequence[float],
    heading: float,
    material: Material,
    taper: tuple[float, float, float] = (0.0, 0.0, 0.0),
    bevel: float = 0.0,
) -> Convex:
    """A box whose sides lean inwards and whose upright edges are cut.

    Args:
        centre: x, y, z in the frame of the sensor.
        size: along its heading, across, and up, at the bottom.
        heading: counter-clockwise from +x.
        material: of all of it.
        taper: how far front, back and sides have come in at the top, in metres.
        bevel: how much of the corners is cut off seen from above, in metres.
    """
    length, width, height = size
    front, back, side = taper
    rows = [
        ((height, 0, front), (length / 2 - front / 2) * height), ((-height, 0, back), (length / 2 - back / 2) * height),
        ((0, height, side), (width / 2 - side / 2) * height), ((0, -height, side), (width / 2 - side / 2) * height),
        ((0, 0, 1), height / 2), ((0, 0, -1), height / 2),
    ]  # fmt: skip
    if bevel > 0:
        rows += [((sx, sy, 0), length / 2 + width / 2 - bevel) for sx in (1, -1) for sy in (1, -1)]
    normals = np.array([row[0] for row in rows], np.float64)
    scale = np.linalg.norm(normals, axis=1)
    cosine, sine = np.cos(heading), np.sin(heading)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    normals = normals / scale[:, None] @ turn.T
    place = np.asarray(centre, np.float64)
    offsets = np.array([row[1] for row in rows]) / scale + normals @ place
    return Convex(normals, offsets, place, float(np.hypot(length, width) / 2), material)


def cast(
    lidar: Lidar,
    ground: Callable[[np.ndarray, np.ndarray], np.ndarray],
    bodies: Sequence[Body],
    rng: np.random.Generator,
    asphalt: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Hits:
    """Send every ray once.

    Args:
        lidar: the sensor, which is at the origin.
        ground: height of the ground, in the sensor's frame, from x and y.
        bodies: what stands on it.
        rng: for how deep rays get into leaves.
        asphalt: reflectance of the ground from x and y.
    """
    hits = _ground(lidar, ground, asphalt)
    for body in bodies:
        parts = [(shape, _columns(lidar, shape)) for shape in body.shapes]
        columns = np.unique(np.concatenate([c for _, c in parts]))
        nearest = np.full((lidar.beams, len(columns)), np.inf)
        known = np.zeros((lidar.beams, len(columns), 4))
        for shape, own in parts:
            place = np.searchsorted(columns, own)
            enter, leave, cosine = shape.cross(lidar.directions[:, own])
            met = (enter < leave) & (enter > 0.5)
            if shape.material.density > 0:
                enter = enter + rng.exponential(1 / shape.material.density, enter.shape)
                met &= enter < leave
            met &= enter < nearest[:, place]
            nearest[:, place] = np.where(met, enter, nearest[:, place])
            values = np.empty((*enter.shape, 4))
            values[..., :3] = shape.material.reflectance, shape.material.spread, shape.material.loss
            values[..., 3] = cosine
            known[:, place] = np.where(met[..., None], values, known[:, place])
        if body.number >= 0:
            hits.alone[body.number] = int((nearest <= lidar.max_range).sum())
        closer = nearest < hits.distance[:, columns]
        beam, column = np.nonzero(closer)
        where = beam, columns[column]
        hits.distance[where] = nearest[closer]
        found = known[closer]
        hits.reflectance[where], hits.loss[where], hits.cosine[where] = found[:, :2], found[:, 2], found[:, 3]
        hits.owner[where] = body.number
    hits.distance[hits.distance > lidar.max_range] = np.inf
    return hits


def _columns(lidar: Lidar, shape: Convex | Cylinder | Ellipsoid) -> np.ndarray:
    """Columns of rays that can meet what lies in a circle around the shape."""
    distance = float(np.hypot(shape.centre[0], shape.centre[1]))
    if distance <= shape.radius:
        return np.arange(lidar.azimuths)
    half = np.arcsin(shape.radius / distance)
    middle = np.arctan2(shape.centre[1], shape.centre[0])
    step = 2 * np.pi / lidar.azimuths
    first = int(np.floor((middle - half + np.pi) / step))
    last = int(np.ceil((middle + half + np.pi) / step))
    return np.unique(np.arange(first, min(last, first + lidar.azimuths - 1) + 1) % lidar.azimuths)


def _ground(
    lidar: Lidar,
    ground: Callable[[np.ndarray, np.ndarray], np.ndarray],
    asphalt: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Hits:
    """Distances to a gently uneven ground, by repeatedly meeting the level plane at the height found there."""
    d = lidar.directions
    down = d[..., 2] < -1e-3
    distance = np.full(d.shape[:2], np.inf)
    t = np.full(int(down.sum()), np.inf)
    dx, dy, dz = d[down].T
    t = np.minimum(-lidar.height / dz, 2 * lidar.max_range)
    for _ in range(6):
        height = ground(dx * t, dy * t)
        t = np.where(height < 0, (height / dz).clip(0.1, 2 * lidar.max_range), t)
    met = np.abs(ground(dx * t, dy * t) - dz * t) < 0.05
    distance[down] = np.where(met & (t < 1.99 * lidar.max_range), t, np.inf)
    values = np.zeros((*d.shape[:2], 2))
    shade = np.zeros(d.shape[:2])
    shade[down] = asphalt(dx * t, dy * t)
    values[..., 0], values[..., 1] = shade, 0.05
    return Hits(distance, values, np.zeros(d.shape[:2]), np.abs(d[..., 2]), np.full(d.shape[:2], -2, np.int64))
