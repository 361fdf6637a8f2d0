"""Ray casting of a spinning LiDAR into a scene of geometric primitives, in NumPy.

A shape is tested only against the ray columns whose azimuth can hit it. The nearest hit of each ray is kept, which
models occlusion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

__all__ = ["Body", "Convex", "Cylinder", "Ellipsoid", "Hits", "Lidar", "Material", "cast", "prism"]


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR at the origin.

    Attributes:
        beams: number of lasers. 64 follows the Velodyne HDL-64E (2 to -24.3 degrees, denser in the upper half); any
            other number is spaced evenly from 10.7 to -30.7 degrees as in the HDL-32E.
        azimuths: measurements of each laser in one revolution.
        height: height of the sensor above the ground, in meters.
        max_range: maximum range, in meters.
        noise: standard deviation of the range, in meters.
        dropout: base probability of losing a return; it rises at long range and at grazing angles.
    """

    beams: int = 64
    azimuths: int = 1800
    height: float = 1.73
    max_range: float = 80.0
    noise: float = 0.02
    dropout: float = 0.06

    def __post_init__(self) -> None:
        if self.beams < 1 or self.azimuths < 8:
            raise ValueError(
                f"`beams` must be at least 1 and `azimuths` at least 8, got {self.beams} and {self.azimuths}"
            )
        if not (self.height > 0 and self.max_range > 1 and self.noise >= 0 and 0 <= self.dropout < 1):
            raise ValueError(
                "`height` must be above 0, `max_range` above 1, `noise` at least 0 and `dropout` in [0, 1), "
                f"got {self.height}, {self.max_range}, {self.noise} and {self.dropout}"
            )

    @cached_property
    def elevation(self) -> np.ndarray:
        """Elevation of each beam in radians, in descending order, float64 ``[beams]``."""
        if self.beams == 64:
            return np.radians(np.concatenate([np.linspace(2, -8.33, 32), np.linspace(-8.83, -24.33, 32)]))
        return np.radians(np.linspace(10.67, -30.67, self.beams))

    @cached_property
    def azimuth(self) -> np.ndarray:
        """Azimuth of each column in radians, ascending from -pi, float64 ``[azimuths]``."""
        return -np.pi + 2 * np.pi * (np.arange(self.azimuths) + 0.5) / self.azimuths

    @cached_property
    def directions(self) -> np.ndarray:
        """Unit direction of each ray, float64 ``[beams, azimuths, 3]``."""
        flat = np.cos(self.elevation)[:, None]
        x, y = flat * np.cos(self.azimuth), flat * np.sin(self.azimuth)
        return np.stack([x, y, np.broadcast_to(np.sin(self.elevation)[:, None], x.shape)], -1)


@dataclass(frozen=True)
class Material:
    """Reflective properties of a surface.

    Attributes:
        reflectance: mean intensity, in [0, 1].
        spread: standard deviation of the intensity.
        loss: probability that a return is lost, as with glass.
        density: hits per meter in a medium that rays penetrate, such as foliage; 0 for a surface.
    """

    reflectance: float
    spread: float = 0.05
    loss: float = 0.0
    density: float = 0.0


@dataclass(frozen=True)
class Convex:
    """Intersection of half-spaces ``normals [P, 3] . x <= offsets [P]``.

    ``center`` and ``radius`` describe a bounding circle in bird's-eye view.
    """

    normals: np.ndarray
    offsets: np.ndarray
    center: np.ndarray
    radius: float
    material: Material

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Intersect rays ``[..., 3]`` from the origin with the shape.

        Returns:
            Entry distance, exit distance (a miss if entry > exit) and cosine of the angle of incidence.
        """
        speed = directions @ self.normals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            at = self.offsets / speed
        enters = np.where(speed < 0, at, -np.inf)
        leave = np.where(speed > 0, at, np.inf).min(-1)
        # A ray parallel to a plane and outside of it never enters.
        outside = ((speed == 0) & (self.offsets < 0)).any(-1)
        face = enters.argmax(-1)[..., None]
        enter = np.take_along_axis(enters, face, -1)[..., 0]
        cosine = -np.take_along_axis(speed, face, -1)[..., 0]
        return np.where(outside, np.inf, enter), leave, cosine


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder between the heights ``low`` and ``high``, without end caps."""

    center: np.ndarray
    radius: float
    low: float
    high: float
    material: Material

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Convex.cross`."""
        dx, dy, dz = np.moveaxis(directions, -1, 0)
        a = dx * dx + dy * dy
        b = dx * self.center[0] + dy * self.center[1]
        root = b * b - a * (self.center[0] ** 2 + self.center[1] ** 2 - self.radius**2)
        enter = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        z = np.where(np.isfinite(enter), enter, 0) * dz
        enter = np.where((z >= self.low) & (z <= self.high), enter, np.inf)
        return enter, np.full_like(enter, np.inf), np.sqrt(np.maximum(root, 0) / a) / self.radius


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with semi-axes ``radii [3]``, rotated about z by ``heading``."""

    center: np.ndarray
    radii: np.ndarray
    material: Material
    heading: float = 0.0

    @property
    def radius(self) -> float:
        """Radius of the bounding circle in bird's-eye view."""
        return float(self.radii[:2].max())

    def cross(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Convex.cross`."""
        cosine, sine = np.cos(self.heading), np.sin(self.heading)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        d, c = directions @ turn / self.radii, self.center @ turn / self.radii
        a, b = (d * d).sum(-1), d @ c
        root = b * b - a * (c @ c - 1)
        half = np.sqrt(np.maximum(root, 0)) / a
        return np.where(root > 0, b / a - half, np.inf), b / a + half, np.sqrt(np.maximum(root, 0) / a).clip(0, 1)


@dataclass(frozen=True)
class Body:
    """Shapes of one object; ``number`` is the object's index, or -1 for scenery."""

    shapes: Sequence[Convex | Cylinder | Ellipsoid]
    number: int = -1


@dataclass
class Hits:
    """The nearest hit of each ray, in arrays ``[beams, azimuths]``.

    Attributes:
        distance: distance in meters; infinite without a hit.
        reflectance: mean and standard deviation of the material's intensity, ``[..., 2]``.
        loss: probability that the return is lost.
        cosine: cosine of the angle of incidence.
        owner: index of the body hit; -1 for scenery, -2 for the ground or no hit.
        alone: for each numbered body, the number of rays that would hit it without occlusion.
    """

    distance: np.ndarray
    reflectance: np.ndarray
    loss: np.ndarray
    cosine: np.ndarray
    owner: np.ndarray
    alone: dict[int, int] = field(default_factory=dict)


def prism(
    center: Sequence[float],
    size: Sequence[float],
    heading: float,
    material: Material,
    taper: tuple[float, float, float] = (0.0, 0.0, 0.0),
    bevel: float = 0.0,
) -> Convex:
    """Build a box with optionally tapered sides and beveled vertical edges.

    Args:
        center: x, y, z in the sensor frame, in meters.
        size: length along the heading, width and height in meters, measured at the bottom.
        heading: angle counter-clockwise from +x, in radians.
        material: material of all faces.
        taper: inward offset at the top of the front, the back and both sides, in meters.
        bevel: length cut off the corners in bird's-eye view, in meters.
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
    place = np.asarray(center, np.float64)
    offsets = np.array([row[1] for row in rows]) / scale + normals @ place
    return Convex(normals, offsets, place, float(np.hypot(length, width) / 2), material)


def cast(
    lidar: Lidar,
    ground: Callable[[np.ndarray, np.ndarray], np.ndarray],
    bodies: Sequence[Body],
    rng: np.random.Generator,
    asphalt: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Hits:
    """Cast every ray of one revolution.

    Args:
        lidar: the sensor, at the origin.
        ground: maps x and y to the height of the ground in the sensor frame.
        bodies: objects and scenery.
        rng: generator for the penetration depth into media with a density.
        asphalt: maps x and y to the reflectance of the ground.
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
    """Ray columns that can hit the bounding circle of the shape."""
    distance = float(np.hypot(shape.center[0], shape.center[1]))
    if distance <= shape.radius:
        return np.arange(lidar.azimuths)
    half = np.arcsin(shape.radius / distance)
    middle = np.arctan2(shape.center[1], shape.center[0])
    step = 2 * np.pi / lidar.azimuths
    first = int(np.floor((middle - half + np.pi) / step))
    last = int(np.ceil((middle + half + np.pi) / step))
    return np.unique(np.arange(first, min(last, first + lidar.azimuths - 1) + 1) % lidar.azimuths)


def _ground(
    lidar: Lidar,
    ground: Callable[[np.ndarray, np.ndarray], np.ndarray],
    asphalt: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Hits:
    """Distances to a slightly uneven ground, by fixed-point iteration on a level plane at the local height."""
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
