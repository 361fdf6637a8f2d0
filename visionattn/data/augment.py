"""albumentations pipelines applied consistently to an image, its boxes, instance masks and label maps.

`find_problems` validates a pipeline written as dicts, `Augmenter` runs it. Instance masks are passed to albumentations
as label maps instead of one mask per object, so an image with hundreds of objects needs one warp instead of hundreds.
Area added by rotation or padding belongs to no object and is set to ``ignore_index`` in label maps.
"""

import difflib
import inspect
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np

from visionattn.errors import ConfigError, MissingDependencyError, require

__all__ = ["Augmented", "Augmenter", "find_problems", "load_albumentations"]

INNER_KEYS = ("transforms", "first", "second")
REFUSED = {
    "Normalize": "returns values that are not uint8 pixels; set mean and std in the model's data_preprocessor",
    "ToFloat": "returns values that are not uint8 pixels; the model's data_preprocessor does the conversion",
    "FromFloat": "expects values that are not uint8 pixels; remove it",
    "ToTensorV2": "returns a tensor, but Pack...Inputs expects arrays; remove it",
    "ToTensor3D": "returns a tensor, but Pack...Inputs expects arrays; remove it",
    "ReplayCompose": "stores replay data, which is not used here; use Compose",
    "Lambda": "needs functions, which a config cannot contain",
    "Mosaic": "needs other images; use mmdet's Mosaic",
    "OverlayElements": "needs other images, which are not available here",
    "TextImage": "needs texts, which are not available here",
    "RandomCropNearBBox": "needs a box to crop around; use AtLeastOneBBoxRandomCrop",
    "ConstrainedCoarseDropout": "needs the names of the boxes' classes; use CoarseDropout",
    "MaskDropout": "does not report which objects it drops; use CoarseDropout",
    "FDA": "needs other images, which are not available here",
    "HistogramMatching": "needs other images, which are not available here",
    "PixelDistributionAdaptation": "needs other images, which are not available here",
}
# These get one mask per object, because in a label map one object would grow into another.
ONE_BY_ONE = {"Morphological"}


def load_albumentations() -> ModuleType:
    """Import albumentations without the request to PyPI that it sends on import.

    Raises:
        MissingDependencyError: albumentations is not installed, is not version 2.0, or is replaced by AlbumentationsX,
            which has the AGPL license and sends telemetry by default.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        found = version("albumentationsx")
    except PackageNotFoundError:
        pass
    else:
        raise MissingDependencyError(
            f"albumentationsx {found} is installed, which sends telemetry and has another licence; "
            "run: pip uninstall albumentationsx && pip install albumentations==2.0.8"
        )
    module = require("albumentations")
    if not str(module.__version__).startswith("2.0."):
        raise MissingDependencyError(
            f"albumentations 2.0.x is required, got {module.__version__}; run: pip install albumentations==2.0.8"
        )
    return module


def find_problems(transforms: Any, path: str = "transforms") -> list[str]:
    """Validate a pipeline of dicts.

    Args:
        transforms: a list of dicts such as ``dict(type="RandomCrop", height=256, width=256, p=0.5)``; ``Compose``,
            ``Sequential``, ``OneOf``, ``SomeOf`` and ``RandomOrder`` have a nested list ``transforms``.
        path: name of the list in the messages.

    Returns:
        One message per problem, each starting with the dotted path of the setting; empty if the pipeline is valid.
    """
    if not isinstance(transforms, (list, tuple)):
        return [f"{path} must be a list of dict(type=..., ...), got {transforms!r}"]
    module = load_albumentations()
    problems: list[str] = []
    for index, item in enumerate(transforms):
        problems += _item_problems(module, item, f"{path}.{index}")
    return problems


def _item_problems(module: ModuleType, item: Any, path: str) -> Iterator[str]:
    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        yield f"{path} must be a dict(type=..., ...), got {item!r:.60}"
        return
    known, name = _classes(module), item["type"]
    if name in REFUSED:
        yield f"{path}.type={name!r} {REFUSED[name]}"
        return
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        remedy = f"; did you mean {' or '.join(close)}?" if close else ""
        yield f"{path}.type={name!r} is not a transform of albumentations {module.__version__}{remedy}"
        return
    before, accepted = True, inspect.signature(known[name].__init__).parameters
    for key, value in item.items():
        if key in INNER_KEYS and key in accepted:
            inner = value if key == "transforms" else [value]
            found = find_problems(inner, f"{path}.{key}")
            before &= not found
            yield from found
        elif key != "type" and key not in accepted:
            before = False
            close = difflib.get_close_matches(key, accepted, n=3, cutoff=0.5)
            remedy = (
                f"; did you mean {' or '.join(close)}?"
                if close
                else f"; its arguments are {', '.join(list(accepted)[1:])}"
            )
            yield f"{path}.{key}: {name} has no such argument{remedy}"
        elif key == "mask_interpolation" and value not in (0, None):
            before = False
            yield f"{path}.{key}={value!r}: interpolation would mix labels; remove it"
        elif key == "fill_mask" and value not in (0, None):
            before = False
            yield f"{path}.{key}={value!r}: remove it; new area is always filled with `ignore_index`"
    if before:
        try:
            _build(known, item)
        except Exception as error:  # raised by pydantic or albumentations
            text = " ".join(line.strip() for line in str(error).splitlines() if "pydantic.dev" not in line)
            yield f"{path}: invalid arguments of {name} ({text[:200]})"


def _classes(module: ModuleType) -> dict[str, type]:
    """Transforms that can be applied to images, by name."""
    interface, composition = module.core.transforms_interface, module.core.composition
    bases = interface.BasicTransform, composition.BaseCompose
    abstract = {*bases, interface.ImageOnlyTransform, interface.DualTransform, interface.NoOp}
    return {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, bases)
        and (cls not in abstract or name == "NoOp")
        and not issubclass(cls, interface.Transform3D)
        and name not in REFUSED
    }


def _build(known: Mapping[str, type], item: Mapping[str, Any]) -> Any:
    arguments = {key: value for key, value in item.items() if key != "type"}
    for key in INNER_KEYS:
        if isinstance(arguments.get(key), Mapping):
            arguments[key] = _build(known, arguments[key])
        elif isinstance(arguments.get(key), (list, tuple)):
            arguments[key] = [_build(known, inner) for inner in arguments[key]]
    return known[item["type"]](**arguments)


def _leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    for transform in transforms:
        inner = getattr(transform, "transforms", None)
        if inner is None:
            yield transform
        else:
            yield from _leaves(inner)


@dataclass(frozen=True)
class Augmented:
    """Result of `Augmenter`.

    Attributes:
        image: ``[H', W', 3]`` uint8.
        kept: int64 ``[M]``, the index in the input of each remaining object. Reflection padding may show an object
            twice: without masks its index then occurs twice, with masks its mask has both parts.
        boxes: float32 ``[M, 4]``, (x0, y0, x1, y1).
        masks: uint8 ``[M, H', W']`` of 0 and 1, or None.
        maps: the transformed maps, ``[H', W']``.
        moved: False if only colors changed; boxes, masks and maps are then the inputs.
        homography: float64 ``[3, 3]``, maps points of the input image to points of the output image, with the origin at
            the corner of the image; exact for flips and crops, accurate to half a pixel for resizing. None if no such
            matrix exists, as after an elastic distortion.
    """

    image: np.ndarray
    kept: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None
    maps: list[np.ndarray]
    moved: bool
    homography: np.ndarray | None


class Augmenter:
    """A pipeline of albumentations for an image and its annotations.

    Args:
        transforms: as for `find_problems`.
        min_area: objects with fewer pixels than this (in the mask if there is one, else in the box) are dropped after a
            geometric transform; so are boxes with a side shorter than a pixel.
        min_visibility: objects are dropped if a transform leaves less than this fraction, in [0, 1], of their box
            inside the image.
        boxes_from_masks: compute boxes from the masks after a geometric transform. Otherwise they are those of
            albumentations, which are too large after a rotation.
        ignore_index: label of area added by padding or rotation in label maps.

    Raises:
        ConfigError: the transforms or another argument are invalid.
    """

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any]],
        *,
        min_area: float = 1.0,
        min_visibility: float = 0.0,
        boxes_from_masks: bool = True,
        ignore_index: int = 255,
    ) -> None:
        problems = find_problems(transforms)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ConfigError(problems[0] + more)
        if min_area < 0:
            raise ConfigError(f"`min_area` must be at least 0, got {min_area!r}")
        if not 0 <= min_visibility <= 1:
            raise ConfigError(f"`min_visibility` must be in [0, 1], got {min_visibility!r}")
        self.min_area, self.min_visibility = min_area, min_visibility
        self.boxes_from_masks, self.ignore_index = boxes_from_masks, ignore_index
        module = load_albumentations()
        known = _classes(module)
        built = [_build(known, item) for item in transforms]
        dual = module.core.transforms_interface.DualTransform
        names = {type(leaf).__name__ for leaf in _leaves(built) if isinstance(leaf, dual)} - {"NoOp"}
        self.geometric, self.one_by_one = bool(names), bool(names & ONE_BY_ONE)
        self._geometric_names = names
        self.compose = module.Compose(
            built,
            bbox_params=module.BboxParams("pascal_voc", min_visibility=min_visibility),
            keypoint_params=module.KeypointParams("xy", remove_invisible=False),
            save_applied_params=True,
        )
        self._targets = 0  # number of maps registered with the pipeline

    def __call__(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        masks: np.ndarray | None = None,
        maps: Sequence[np.ndarray] = (),
    ) -> Augmented:
        """Transform an image and its annotations; random numbers come from NumPy's global generator.

        Args:
            image: ``[H, W, 3]`` or ``[H, W]`` uint8; RGB if the transforms depend on the order of the channels.
            boxes: float ``[N, 4]``, (x0, y0, x1, y1) in pixels, clipped to the image.
            masks: ``[N, H, W]`` of 0 and 1, or None.
            maps: ``[H, W]`` of labels (integers up to 65534) or of values (floats, filled with 0).
        """
        self._seed()
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if not self.geometric:
            changed = self.compose(image=image, bboxes=np.zeros((0, 5), np.float32), keypoints=np.zeros((0, 3)))
            return Augmented(changed["image"], np.arange(len(boxes)), boxes, masks, list(maps), False, np.eye(3))
        height, width = image.shape[:2]
        inside = np.clip(boxes, 0, [width, height, width, height])
        usable = np.flatnonzero((inside[:, 2:] - inside[:, :2] > 1e-3).all(1))
        layers, places = _to_layers(masks, self.one_by_one) if masks is not None else (np.zeros((0, 1, 1)), [])
        shifted = [_shift_map(m, self.ignore_index) for m in maps]
        data: dict[str, Any] = {"image": image, "keypoints": _corners(width, height)}
        data["bboxes"] = np.concatenate([inside[usable], usable[:, None]], 1).astype(np.float32)
        if len(layers):
            data["masks"] = layers
        while self._targets < len(shifted):
            self.compose.add_targets({f"map{self._targets}": "mask"})
            self._targets += 1
        data.update({f"map{i}": m for i, m in enumerate(shifted)})
        changed = self.compose(**data)
        if not any(name in self._geometric_names for name, _ in changed["applied_transforms"]):
            return Augmented(changed["image"], np.arange(len(boxes)), boxes, masks, list(maps), False, np.eye(3))
        image = np.ascontiguousarray(changed["image"])
        out = _from_layers(changed.get("masks"), places, image.shape[:2]) if masks is not None else None
        found = np.asarray(changed["bboxes"], np.float32).reshape(-1, 5)
        kept, new_boxes = self._objects(boxes, masks, out, found)
        return Augmented(
            image,
            kept,
            new_boxes,
            None if out is None else out[kept],
            [_unshift_map(changed[f"map{i}"], m, self.ignore_index) for i, m in enumerate(maps)],
            True,
            _homography(np.asarray(changed["keypoints"]), width, height),
        )

    def _seed(self) -> None:
        first, second, third = (int(word) for word in np.random.randint(0, 2**31, 3))
        self.compose.set_random_state(np.random.default_rng(first), random.Random(second))
        require("cv2").setRNGSeed(third)  # some transforms use OpenCV's generator

    def _objects(
        self, boxes: np.ndarray, masks: np.ndarray | None, changed: np.ndarray | None, found: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the remaining objects and their boxes."""
        sides = found[:, 2:4] - found[:, :2]
        large = (sides >= 1 - 1e-4).all(1)
        if masks is None or changed is None:
            found = found[large & (sides.prod(1) >= self.min_area - 1e-4)]
            return found[:, 4].astype(np.int64), np.ascontiguousarray(found[:, :4])
        index, first = np.unique(found[large, 4].astype(np.int64), return_index=True)
        new_boxes, alive = np.zeros_like(boxes), np.zeros(len(boxes), bool)
        new_boxes[index], alive[index] = found[large][first, :4], True
        drawn = masks.any((1, 2))  # objects with an empty mask are judged by their box
        area = changed.sum((1, 2), dtype=np.int64)
        if self.boxes_from_masks:
            if self.min_visibility == 0:
                alive |= drawn
            for i in np.flatnonzero(drawn & (area > 0)):
                new_boxes[i] = _extent(changed[i])
        alive &= ~drawn | (area >= max(self.min_area, 1))
        kept = np.flatnonzero(alive)
        return kept, new_boxes[kept]


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _to_layers(masks: np.ndarray, one_by_one: bool) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Pack masks into label maps ``[L, H, W]``, overlapping ones into different maps, and return each one's place."""
    layers: list[np.ndarray] = []
    places = []
    for number, mask in enumerate(np.asarray(masks, bool)):
        if not mask.any():
            places.append((-1, 0))
            continue
        x0, y0, x1, y1 = _extent(mask)
        crop = mask[y0:y1, x0:x1]
        free = (i for i, layer in enumerate(layers) if not layer[y0:y1, x0:x1][crop].any())
        place = None if one_by_one else next(free, None)
        if place is None:
            place = len(layers)
            layers.append(np.zeros(mask.shape, np.uint16))
        layers[place][y0:y1, x0:x1][crop] = number + 1
        places.append((place, number + 1))
    return (np.stack(layers) if layers else np.zeros((0, *masks.shape[1:]), np.uint16)), places


def _from_layers(layers: np.ndarray | None, places: Sequence[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(places), *size), np.uint8)
    for mask, (layer, label) in zip(masks, places, strict=True):
        if layer >= 0:
            np.equal(layers[layer], label, out=mask.view(bool))
    return masks


def _shift_map(labels: np.ndarray, ignore: int) -> np.ndarray:
    """Increase labels by 1, so that 0, the fill value of albumentations, can stand for ``ignore``."""
    if labels.dtype.kind == "f":
        return np.ascontiguousarray(labels, np.float32)
    if labels.size and (labels.min() < 0 or labels.max() > 65534):
        raise ConfigError(f"labels of `maps` must be in [0, 65534], got {labels.min()} to {labels.max()}")
    shifted = labels.astype(np.uint16) + 1
    shifted[labels == ignore] = 0
    return shifted


def _unshift_map(shifted: np.ndarray, like: np.ndarray, ignore: int) -> np.ndarray:
    if like.dtype.kind == "f":
        return np.ascontiguousarray(shifted, like.dtype)
    labels = shifted.astype(np.int64) - 1
    labels[shifted == 0] = ignore
    return labels.astype(like.dtype)


def _corners(width: int, height: int) -> np.ndarray:
    """Nine points of the image and their numbers, ``[9, 3]``, with the origin at the center of the first pixel."""
    x, y = np.meshgrid([0.2 * width, 0.5 * width, 0.8 * width], [0.2 * height, 0.5 * height, 0.8 * height])
    return np.stack([x.ravel() - 0.5, y.ravel() - 0.5, np.arange(9)], 1).astype(np.float32)


def _homography(points: np.ndarray, width: int, height: int) -> np.ndarray | None:
    """Homography between the nine points before and after, or None if its error is a pixel or more."""
    if len(points) != 9 or not np.isfinite(points).all():
        return None
    before = _corners(width, height)[points[:, 2].astype(int), :2].astype(np.float64) + 0.5
    after = points[:, :2].astype(np.float64) + 0.5
    matrix, _ = require("cv2").findHomography(before, after, 0)
    if matrix is None:
        return None
    matrix = np.where(np.abs(matrix - np.rint(matrix)) < 1e-4, np.rint(matrix), matrix)
    moved = np.concatenate([before, np.ones((9, 1))], 1) @ matrix.T
    close = np.abs(moved[:, :2] / moved[:, 2:] - after).max() < 1
    return matrix if close else None
