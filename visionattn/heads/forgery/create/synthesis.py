"""Online synthesis of local forgeries from photographs, with exact masks and a record of the operations.

The operations and their parameter ranges are common in the field (IMDLBenCo's augmentations, CASIA, tampCOCO).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.forgery.create.regions import REGION_SHAPES, feathered, random_region
from visionattn.heads.forgery.create.scenes import SCENE_SHAPES, new_content, scene_region, seam
from visionattn.io.images import jpeg_round_trip

__all__ = ["ALL_OPERATIONS", "ALL_SHAPES", "OPERATIONS", "Donor", "Forgery", "ForgerySynthesis"]

ALL_SHAPES = (*REGION_SHAPES, *SCENE_SHAPES)
OPERATIONS = ("copy_move", "splice", "removal", "clone", "noise", "blur", "jpeg", "resample")
ALL_OPERATIONS = (*OPERATIONS, "regenerate")
DEFAULT_WEIGHTS = {
    "copy_move": 2.0, "splice": 3.0, "removal": 1.5, "clone": 1.0, "noise": 1.0, "blur": 1.0, "jpeg": 1.0,
    "resample": 1.5,
}  # fmt: skip
MIN_CHANGE = 1.0
"""Minimum mean change within the mask in gray levels; forgeries with less are discarded."""

Donor = tuple[np.ndarray, np.ndarray | None]
"""An image, uint8 ``[H, W, 3]``, and the mask of an object in it, ``[H, W]``, or None."""


@dataclass
class Forgery:
    """An image with a record of its manipulation.

    Attributes:
        image: uint8 ``[H, W, 3]``.
        mask: uint8 ``[H, W]``, 1 where forged.
        label: 1 if the image is forged, else 0.
        steps: operations in order with their parameters, JSON serializable.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    steps: list[dict[str, Any]] = field(default_factory=list)


class ForgerySynthesis:
    """Forge a random region of an image with a given probability, then compress the image in either case.

    Args:
        operations: names from `ALL_OPERATIONS`, or a mapping of names to sampling weights; by default `OPERATIONS`.
            ``"copy_move"`` pastes a region of the image elsewhere, ``"splice"`` a region of a donor, ``"clone"`` a
            region of a donor with OpenCV's seamless cloning; ``"removal"`` inpaints; ``"regenerate"`` fills the region
            with new content that resembles its surroundings; the others change noise, sharpness, compression or
            resampling of a region.
        probability: probability of a forgery.
        area: minimum and maximum area of the region as fractions of the image, drawn log-uniformly.
        shapes: shapes of the region, see `random_region`, or ``"stuff"`` and ``"background"`` for parts of a scene, see
            `scene_region`; splices use the donor's object if given.
        feather: maximum width of soft edges, in pixels.
        colour_match: probability that a pasted region is matched to the color mean and standard deviation of the
            pixels it replaces.
        geometry: probability that a pasted region is scaled (0.5 to 1.5) and rotated (up to 30 degrees).
        quality: range of the JPEG quality of the output, or None for no compression. It is applied to forged and
            authentic images alike, so that it does not reveal the label.
        max_seam: forgeries whose border has more than this contrast relative to the original are discarded, see
            `visionattn.heads.forgery.create.scenes.seam`; None keeps all.
        donor: function that draws a `Donor` with a generator; without one, splices are taken from the image itself.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        operations: Mapping[str, float] | Sequence[str] = OPERATIONS,
        probability: float = 0.5,
        area: tuple[float, float] = (0.02, 0.25),
        shapes: Sequence[str] = REGION_SHAPES,
        feather: float = 5.0,
        colour_match: float = 0.3,
        geometry: float = 0.5,
        quality: tuple[int, int] | None = (70, 100),
        max_seam: float | None = None,
        donor: Callable[[np.random.Generator], Donor] | None = None,
    ) -> None:
        if not isinstance(operations, Mapping):
            operations = {name: DEFAULT_WEIGHTS.get(name, 1.0) for name in operations}
        unknown = [name for name in operations if name not in ALL_OPERATIONS]
        if unknown or not operations or min(operations.values()) < 0 or sum(operations.values()) <= 0:
            raise ValueError(
                f"`operations` must be names, or weights of at least 0, of {', '.join(ALL_OPERATIONS)}, "
                f"got {dict(operations)}"
            )
        unknown = [s for s in shapes if s not in ALL_SHAPES]
        if unknown or not shapes:
            raise ValueError(f"`shapes` must be one or more of {', '.join(ALL_SHAPES)}, got {list(shapes)}")
        if not 0 < area[0] <= area[1] < 1:
            raise ValueError(f"`area` must be two ascending numbers between 0 and 1, got {area}")
        for name, value in (("probability", probability), ("colour_match", colour_match), ("geometry", geometry)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {value}")
        if not 0 <= feather < np.inf:
            raise ValueError(f"`feather` must be finite and at least 0, got {feather}")
        if quality is not None and not 1 <= quality[0] <= quality[1] <= 100:
            raise ValueError(f"`quality` must be two ascending whole numbers in 1..100, got {quality}")
        if max_seam is not None and max_seam <= 0:
            raise ValueError(f"`max_seam` must be positive, got {max_seam}")
        self.names = list(operations)
        weights = np.array([operations[n] for n in self.names], dtype=np.float64)
        self.weights = weights / weights.sum()
        self.probability, self.area, self.shapes = probability, area, tuple(shapes)
        self.feather, self.colour_match, self.geometry = feather, colour_match, geometry
        self.quality, self.max_seam, self.donor = quality, max_seam, donor

    def __call__(
        self, image: np.ndarray, seed: int | np.random.Generator | None = None, forge: bool | None = None
    ) -> Forgery:
        """Forge an image, or only compress it.

        If eight attempts give no valid forgery, the image stays authentic.

        Args:
            image: uint8 ``[H, W, 3]`` with at least 32 pixels per side; it is not modified.
            seed: random seed or generator.
            forge: whether to forge; None decides randomly with ``probability``.

        Raises:
            ValueError: if the image has another type or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
            raise ValueError(
                f"`image` must be uint8 [H, W, 3] with at least 32 pixels per side, got {image.dtype} {image.shape}"
            )
        rng = np.random.default_rng(seed)
        wanted = rng.random() < self.probability if forge is None else forge
        empty = np.zeros(image.shape[:2], np.uint8)
        result = Forgery(image.copy(), empty, 0)
        for _ in range(8 if wanted else 0):
            name = str(rng.choice(self.names, p=self.weights))
            made = getattr(self, f"_{name}")(rng, image)
            if made is None:
                continue
            changed, mask, facts = made
            share = float(mask.mean())
            if not 0.25 * self.area[0] <= share <= 0.8:
                continue
            difference = np.abs(changed[mask].astype(np.int16) - image[mask]).mean()
            if difference < MIN_CHANGE:
                continue
            if self.max_seam is not None and seam(image, changed, mask) > self.max_seam:
                continue
            step = {"operation": name, **facts, "area": round(share, 5), "change": round(float(difference), 2)}
            result = Forgery(changed, mask.astype(np.uint8), 1, [step])
            break
        if self.quality is not None:
            quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
            result.image = jpeg_round_trip(result.image, quality)
            result.steps.append({"operation": "save", "quality": quality})
        return result

    def _region(
        self, rng: np.random.Generator, image: np.ndarray, area: tuple[float, float] | None = None
    ) -> tuple[np.ndarray, str]:
        """Draw a region, and return it with the name of its shape."""
        area = area or self.area
        if not set(self.shapes) & set(SCENE_SHAPES):
            return random_region(rng, image, area, self.shapes)
        shape = str(self.shapes[rng.integers(len(self.shapes))])
        if shape not in SCENE_SHAPES:
            return random_region(rng, image, area, (shape,))
        share = float(np.exp(rng.uniform(np.log(area[0]), np.log(area[1]))))
        return scene_region(rng, image, share, shape), shape

    # Each operation returns the changed image, the mask and its parameters, or None on failure.

    def _copy_move(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        region, shape = self._region(rng, image)
        return self._paste(rng, image, image, region, {"shape": shape}, apart=True)

    def _splice(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        found = self._donor_region(rng, image)
        return None if found is None else self._paste(rng, image, *found)

    def _donor_region(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        """Draw a donor at least as large as the image, and a region of it with its parameters."""
        cv2 = require("cv2")
        picture, chosen = (image, None) if self.donor is None else self.donor(rng)
        grow = max(image.shape[0] / picture.shape[0], image.shape[1] / picture.shape[1])
        if grow > 1:
            size = (-(-int(picture.shape[1] * grow * 64) // 64), -(-int(picture.shape[0] * grow * 64) // 64))
            size = tuple(max(a, b) for a, b in zip(size, (image.shape[1], image.shape[0]), strict=True))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
            chosen = None if chosen is None else cv2.resize(chosen.astype(np.uint8), size)
        if chosen is not None:
            ys, xs = np.nonzero(chosen)
            fits = len(ys) and np.ptp(ys) < image.shape[0] and np.ptp(xs) < image.shape[1]
            if not fits or not self.area[0] <= len(ys) / image[..., 0].size <= 2 * self.area[1]:
                chosen = None
        if chosen is None:
            top = int(rng.integers(picture.shape[0] - image.shape[0] + 1))
            left = int(rng.integers(picture.shape[1] - image.shape[1] + 1))
            picture = picture[top : top + image.shape[0], left : left + image.shape[1]]
            region, shape = self._region(rng, picture)
        else:
            region, shape = chosen.astype(bool), "object"
        return picture, region, {"shape": shape, "donor": self.donor is not None}

    def _moved(
        self, rng: np.random.Generator, image: np.ndarray, source: np.ndarray, region: np.ndarray, apart: bool
    ) -> Any:
        """Move a region of the source to a random position of the image: content, mask, parameters."""
        cv2 = require("cv2")
        ys, xs = np.nonzero(region)
        if len(ys) < 16:
            return None
        height, width = image.shape[:2]
        facts: dict[str, Any] = {}
        scale, angle = 1.0, 0.0
        if rng.random() < self.geometry:
            scale, angle = float(rng.uniform(0.5, 1.5)), float(rng.uniform(-30, 30))
            facts |= {"scale": round(scale, 3), "angle": round(angle, 2)}
        flip = bool(rng.random() < 0.25)
        cx, cy = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
        half_h, half_w = (np.ptp(ys) + 1) * scale / 2, (np.ptp(xs) + 1) * scale / 2
        for _ in range(6):
            x = rng.uniform(min(half_w, width / 2), max(width - half_w, width / 2))
            y = rng.uniform(min(half_h, height / 2), max(height - half_h, height / 2))
            if not apart or abs(x - cx) > half_w / 2 or abs(y - cy) > half_h / 2:
                break
        if (scale, angle) == (1.0, 0.0):  # integer shifts avoid resampling
            x, y = cx + round(x - cx), cy + round(y - cy)
        matrix = cv2.getRotationMatrix2D((float(cx), float(cy)), angle, scale)
        if flip:
            matrix = matrix @ np.array([[-1, 0, 2 * cx], [0, 1, 0], [0, 0, 1]])
            facts["flip"] = True
        matrix[:, 2] += (x - cx, y - cy)
        plain = (scale, angle) == (1.0, 0.0)
        flags = cv2.INTER_NEAREST if plain else cv2.INTER_CUBIC
        content = cv2.warpAffine(source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        mask = cv2.warpAffine(region.astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST).astype(bool)
        facts["shift"] = [round(float(x - cx), 1), round(float(y - cy), 1)]
        return content, mask, facts

    def _paste(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        source: np.ndarray,
        region: np.ndarray,
        facts: dict[str, Any],
        apart: bool = False,
    ) -> Any:
        moved = self._moved(rng, image, source, region, apart)
        if moved is None:
            return None
        content, mask, more = moved
        if not mask.any():
            return None
        if rng.random() < self.colour_match:
            content, more["colour_match"] = _match_colors(content, image, mask), True
        changed, width = self._blend(rng, image, content, mask)
        return changed, mask, {**facts, **more, "feather": width}

    def _blend(
        self, rng: np.random.Generator, image: np.ndarray, content: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, float]:
        width = round(float(rng.uniform(0, self.feather)), 1) if rng.random() < 0.6 else 0.0
        if width < 0.5:
            return np.where(mask[..., None], content, image), 0.0
        alpha = feathered(mask, width)[..., None]
        mixed = image * (1 - alpha) + content * alpha
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), width

    def _removal(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        cv2 = require("cv2")
        smaller = (self.area[0], max(self.area[0], min(self.area[1], 0.12)))
        mask, shape = self._region(rng, image, smaller)
        telea = bool(rng.random() > 0.5)
        method = cv2.INPAINT_TELEA if telea else cv2.INPAINT_NS
        changed = cv2.inpaint(np.ascontiguousarray(image), mask.astype(np.uint8), 3, method)
        return changed, mask, {"shape": shape, "method": "telea" if telea else "navier_stokes"}

    def _regenerate(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        mask, shape = self._region(rng, image)
        if not 16 <= mask.sum() <= 0.9 * mask.size:
            return None
        changed, width = self._blend(rng, image, new_content(rng, image, mask), mask)
        return changed, mask, {"shape": shape, "feather": width}

    def _clone(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        cv2 = require("cv2")
        found = self._donor_region(rng, image)
        moved = None if found is None else self._moved(rng, image, found[0], found[1], False)
        if moved is None:
            return None
        content, mask, facts = moved
        border = 3
        mask[:border], mask[-border:], mask[:, :border], mask[:, -border:] = False, False, False, False
        ys, xs = np.nonzero(mask)
        if len(ys) < 64 or min(np.ptp(ys), np.ptp(xs)) < 8:
            return None
        # OpenCV places the center of the mask's bounding box at this point.
        box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
        middle = (box[0] + box[2] // 2, box[1] + box[3] // 2)
        mixed = bool(rng.random() < 0.3)
        flags = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
        changed = cv2.seamlessClone(content, image, mask.astype(np.uint8) * 255, middle, flags)
        changed = np.where(mask[..., None], changed, image)
        return changed, mask, {**found[2], **facts, "method": "mixed" if mixed else "normal"}

    def _local(self, rng: np.random.Generator, image: np.ndarray, content: np.ndarray, facts: dict[str, Any]) -> Any:
        mask, shape = self._region(rng, image)
        changed, width = self._blend(rng, image, content, mask)
        return changed, mask, {"shape": shape, **facts, "feather": width}

    def _noise(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        sigma = float(rng.uniform(3, 15))
        content = image + rng.normal(0, sigma, image.shape).astype(np.float32)
        return self._local(rng, image, np.clip(np.rint(content), 0, 255).astype(np.uint8), {"sigma": round(sigma, 2)})

    def _blur(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        albumentations = require("albumentations")
        limit = int(rng.integers(1, 4)) * 2 + 1
        step = albumentations.GaussianBlur(blur_limit=(limit, limit), sigma_limit=(0.8, 2.5), p=1)
        step.set_random_seed(int(rng.integers(2**31)))
        return self._local(rng, image, step(image=image)["image"], {"kernel": limit})

    def _jpeg(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        quality = int(rng.integers(30, 76))
        top, left = int(rng.integers(8)), int(rng.integers(8))  # shift the grid of 8 x 8 blocks
        padded = np.pad(image, ((top, 0), (left, 0), (0, 0)), mode="edge")
        return self._local(rng, image, jpeg_round_trip(padded, quality)[top:, left:], {"quality": quality})

    def _resample(self, rng: np.random.Generator, image: np.ndarray) -> Any:
        cv2 = require("cv2")
        height, width = image.shape[:2]
        factor = float(rng.uniform(0.4, 0.9) if rng.random() < 0.7 else rng.uniform(1.1, 1.6))
        size = (max(8, round(width * factor)), max(8, round(height * factor)))
        kind = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA]))
        back = cv2.resize(cv2.resize(image, size, interpolation=kind), (width, height), interpolation=cv2.INTER_CUBIC)
        return self._local(rng, image, back, {"factor": round(factor, 3)})


def _match_colors(content: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Match the content within the mask to the color mean and (within limits) standard deviation of the image."""
    inside, under = content[mask].astype(np.float32), image[mask].astype(np.float32)
    gain = np.clip((under.std(0) + 1) / (inside.std(0) + 1), 0.6, 1.6)
    matched = (content.astype(np.float32) - inside.mean(0)) * gain + under.mean(0)
    return np.clip(np.rint(matched), 0, 255).astype(np.uint8)
