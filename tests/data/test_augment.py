"""albumentations pipelines: the image, its masks, boxes and maps move together."""

import inspect
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

pytest.importorskip("albumentations")

import cv2

from visionattn.data import augment
from visionattn.data.augment import Augmenter, find_problems
from visionattn.errors import ConfigError, MissingDependencyError

ARGUMENTS = {
    "AtLeastOneBBoxRandomCrop": dict(height=70, width=80),
    "CenterCrop": dict(height=70, width=80),
    "Crop": dict(x_min=10, y_min=5, x_max=90, y_max=70),
    "CropAndPad": dict(px=(-12, 12)),
    "CropNonEmptyMaskIfExists": dict(height=70, width=80),
    "ElasticTransform": dict(alpha=60, sigma=8),
    "GridElasticDeform": dict(num_grid_xy=(3, 3), magnitude=6),
    "LongestMaxSize": dict(max_size=80),
    "Pad": dict(padding=9),
    "PadIfNeeded": dict(min_height=120, min_width=130),
    "PiecewiseAffine": dict(nb_rows=3, nb_cols=3),
    "RandomCrop": dict(height=70, width=80),
    "RandomResizedCrop": dict(size=(80, 70)),
    "RandomSizedBBoxSafeCrop": dict(height=70, width=80),
    "RandomSizedCrop": dict(min_max_height=(60, 90), size=(80, 90)),
    "Resize": dict(height=70, width=150),
    "SmallestMaxSize": dict(max_size=70),
}
# They overwrite parts of the picture, or grow and shrink masks, so that its colours no longer show the masks.
PAINTED_OVER = {
    "CoarseDropout", "Erasing", "FrequencyMasking", "GridDropout", "Morphological",
    "PixelDropout", "TimeMasking", "XYMasking",
}  # fmt: skip
LEVELS = (60, 90, 120, 150, 180, 210)


def usable(base: str = "BasicTransform") -> dict[str, type]:
    """The transforms of albumentations below a class of its interface that are accepted with `ARGUMENTS`, by name."""
    module = augment.load_albumentations()
    interface = module.core.transforms_interface
    return {
        name: cls
        for name, cls in sorted(vars(module).items())
        if inspect.isclass(cls)
        and issubclass(cls, getattr(interface, base))
        and cls not in (interface.BasicTransform, interface.DualTransform, interface.ImageOnlyTransform)
        and not find_problems([dict(type=name, **ARGUMENTS.get(name, {}))])
    }


def geometric_names() -> list[str]:
    return [name for name in usable("DualTransform") if name != "NoOp"]


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a mask: x0, y0, x1, y1."""
    rows, columns = mask.nonzero()
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def scene(seed: int, size: tuple[int, int] = (96, 112), overlap: bool = False):
    """Random convex shapes, each painted in its own gray; the image, boxes, masks and the map of labels."""
    rng = np.random.default_rng(seed)
    height, width = size
    masks, image = np.zeros((len(LEVELS), *size), np.uint8), np.full((*size, 3), 20, np.uint8)
    labels = np.full(size, 255, np.uint8)
    taken = np.zeros(size, bool)
    for number, mask in enumerate(masks):
        for _ in range(200):
            mask[:] = 0
            center = rng.integers(10, [width - 10, height - 10])
            points = center + rng.integers(-14, 15, (6, 2))
            cv2.fillConvexPoly(mask, cv2.convexHull(points.astype(np.int32)), 1)
            if overlap or not (cv2.dilate(mask, np.ones((5, 5))).astype(bool) & taken).any():
                break
        taken |= mask.astype(bool)
        image[mask > 0], labels[mask > 0] = LEVELS[number], number
    boxes = np.array([extent(m) if m.any() else (0, 0, 0, 0) for m in masks], np.float32)
    return image, boxes, masks, labels


def extents(masks: np.ndarray) -> np.ndarray:
    return np.array([extent(m) for m in masks], np.float32).reshape(-1, 4)


def same(a, b) -> bool:
    pairs = [
        (a.image, b.image),
        (a.boxes, b.boxes),
        (a.kept, b.kept),
        (a.masks, b.masks),
        *zip(a.maps, b.maps, strict=True),
    ]
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", geometric_names())
def test_everything_moves_together(name):
    """The picture shows each object in its own gray, so that it tells where each mask should be."""
    pipeline = Augmenter([dict(type=name, p=1.0, **ARGUMENTS.get(name, {}))])
    moved = 0
    for seed in range(3 if name == "PiecewiseAffine" else 6):
        image, boxes, masks, labels = scene(seed)
        np.random.seed(seed)
        done = pipeline(image, boxes, masks, [labels])
        moved += done.moved
        assert done.image.shape[:2] == done.masks.shape[1:] == done.maps[0].shape
        np.testing.assert_array_equal(done.boxes, extents(done.masks))
        assert done.masks.any((1, 2)).all()
        union = done.masks.any(0) if len(done.kept) else np.zeros(done.image.shape[:2], bool)
        if name != "Morphological":
            np.testing.assert_array_equal(union, (done.maps[0] != 255) & np.isin(done.maps[0], done.kept))
            for index, mask in zip(done.kept, done.masks, strict=True):
                np.testing.assert_array_equal(done.maps[0] == index, mask > 0)
        if name in PAINTED_OVER:
            continue
        gray = done.image[..., 0].astype(int)
        for index, mask in zip(done.kept, done.masks, strict=True):
            inside = cv2.erode(mask, np.ones((5, 5))).astype(bool)
            assert (np.abs(gray[inside] - LEVELS[index]) <= 2).mean() > 0.75 if inside.any() else True, "a mask slipped"
        outside = ~cv2.dilate(done.masks.max(0, initial=0), np.ones((5, 5))).astype(bool)
        assert (gray[outside] <= 22).mean() > 0.99, "an object without its mask"
    assert moved, "it did nothing at all"


@pytest.mark.parametrize("name", ["HorizontalFlip", "RandomRotate90", "RandomCrop", "Pad", "Resize", "D4", "Transpose"])
def test_boxes_without_masks_are_those_of_the_masks(name):
    """Where a box stays a box, albumentations' own agree with the masks to a pixel."""
    pipeline = Augmenter([dict(type=name, p=1.0, **ARGUMENTS.get(name, {}))])
    for seed in range(5):
        image, boxes, masks, _ = scene(seed)
        np.random.seed(seed)
        with_masks = pipeline(image, boxes, masks)
        np.random.seed(seed)
        alone = pipeline(image, boxes)
        assert alone.masks is None
        found = dict(zip(alone.kept.tolist(), alone.boxes, strict=True))
        for index, box in zip(with_masks.kept.tolist(), with_masks.boxes, strict=True):
            if (box[2:] - box[:2]).min() >= 4:  # a crop leaves a corner of a box without any of its mask
                inside = found[index][:2] <= box[:2] + 1, found[index][2:] >= box[2:] - 1
                assert np.all(inside)
        if name in ("HorizontalFlip", "RandomRotate90", "Pad", "D4", "Transpose"):
            np.testing.assert_allclose(np.array([found[i] for i in with_masks.kept]), with_masks.boxes, atol=1e-3)


@pytest.mark.parametrize("name", geometric_names())
def test_layers_change_nothing(name):
    """Many masks in one label map come out as each mask alone would."""
    arguments = dict(type=name, p=1.0, **ARGUMENTS.get(name, {}))
    if name == "PiecewiseAffine":
        pytest.skip("the same warp as the others, and slow")
    image, boxes, masks, _ = scene(1, overlap=True)
    packed, alone = Augmenter([arguments]), Augmenter([arguments])
    alone.one_by_one = True
    results = []
    for pipeline in (packed, alone):
        np.random.seed(3)
        results.append(pipeline(image, boxes, masks))
    assert same(*results)


def test_determinism():
    """Every transform follows from NumPy's seed, whatever was drawn before, in a new object as in a used one."""
    image, boxes, masks, labels = scene(0)
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8), (3, 3), 1)
    tried = 0
    for name in usable():
        item = dict(type=name, p=1.0, **ARGUMENTS.get(name, {}))
        if name == "PiecewiseAffine":
            continue
        used = Augmenter([item])
        results = []
        for pipeline in (used, used, Augmenter([item])):
            np.random.seed(7)
            try:
                results.append(pipeline(image, boxes, masks, [labels]))
            except TypeError:  # only for one channel
                break
            np.random.seed(8)
            cv2.setRNGSeed(5)
            pipeline(image, boxes, masks, [labels])
        tried += 1
        assert all(same(results[0], r) for r in results), name
    assert tried > 90


def test_seeds_differ():
    image, boxes, masks, labels = scene(0)
    pipeline = Augmenter([dict(type="Affine", rotate=(-40, 40), p=1.0)])
    np.random.seed(0)
    assert not same(pipeline(image, boxes, masks, [labels]), pipeline(image, boxes, masks, [labels]))


def test_colour_changes_leave_annotations_alone():
    image, boxes, masks, labels = scene(0)
    boxes = boxes + np.float32(0.123)
    for transforms in (
        [dict(type="RandomBrightnessContrast", brightness_limit=(0.2, 0.3), p=1.0)],
        [dict(type="HorizontalFlip", p=0.0), dict(type="RandomBrightnessContrast", brightness_limit=(0.2, 0.3), p=1.0)],
    ):
        done = Augmenter(transforms)(image, boxes, masks, [labels])
        assert not done.moved
        assert (done.image != image).any()
        assert done.boxes is not None
        np.testing.assert_array_equal(done.boxes, boxes)
        assert done.masks is masks
        assert done.maps[0] is labels
        np.testing.assert_array_equal(done.homography, np.eye(3))


def test_nothing_on_the_image():
    image, _, masks, _ = scene(0)
    done = Augmenter([dict(type="RandomCrop", height=50, width=40, p=1.0)])(image, np.zeros((0, 4)), masks[:0])
    assert (done.image.shape, done.boxes.shape, done.masks.shape) == ((50, 40, 3), (0, 4), (0, 50, 40))
    assert Augmenter([])(image, np.zeros((0, 4))).kept.shape == (0,)


def test_crop_cuts_and_drops():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.float32([[10, 10, 30, 30], [40, 40, 60, 60], [45, 45, 95, 95], [70, 70, 90, 90], [49.5, 0, 60, 20]])
    crop = dict(type="Crop", x_min=0, y_min=0, x_max=50, y_max=50, p=1.0)
    done = Augmenter([crop])(image, boxes)
    assert done.kept.tolist() == [0, 1, 2], "the fourth is outside, the fifth thinner than a pixel"
    np.testing.assert_allclose(done.boxes, [[10, 10, 30, 30], [40, 40, 50, 50], [45, 45, 50, 50]], atol=1e-4)
    assert Augmenter([crop], min_area=50)(image, boxes).kept.tolist() == [0, 1]
    assert Augmenter([crop], min_visibility=0.2)(image, boxes).kept.tolist() == [0, 1]
    assert Augmenter([crop], min_visibility=0.3)(image, boxes).kept.tolist() == [0]


def test_masks_decide_over_boxes():
    """An L whose arm is cut off leaves a box, and no pixel."""
    image, masks = np.zeros((100, 100, 3), np.uint8), np.zeros((2, 100, 100), np.uint8)
    masks[0, 60:90, 10:20], masks[0, 80:90, 10:90] = 1, 1
    masks[1, 20:40, 20:40] = 1
    crop = dict(type="Crop", x_min=30, y_min=0, x_max=100, y_max=70, p=1.0)
    assert Augmenter([crop])(image, extents(masks)).kept.tolist() == [0, 1]
    done = Augmenter([crop])(image, extents(masks), masks)
    assert done.kept.tolist() == [1]
    np.testing.assert_array_equal(done.boxes, [[0, 20, 10, 40]])
    assert Augmenter([crop], min_visibility=0.6)(image, extents(masks), masks).kept.tolist() == []


def test_empty_mask_keeps_its_box():
    image, boxes, masks, _ = scene(0)
    masks[2] = 0
    done = Augmenter([dict(type="HorizontalFlip", p=1.0)])(image, boxes, masks)
    assert done.kept.tolist() == list(range(6))
    np.testing.assert_allclose(done.boxes[2], [112 - boxes[2, 2], boxes[2, 1], 112 - boxes[2, 0], boxes[2, 3]])
    assert not done.masks[2].any()


def test_maps_of_many_labels_and_of_values():
    image = np.zeros((40, 50, 3), np.uint8)
    wide = np.arange(2000, dtype=np.int64).reshape(40, 50)
    depth = np.linspace(1, 9, 2000, dtype=np.float32).reshape(40, 50)
    pad = Augmenter([dict(type="Pad", padding=2, p=1.0)], ignore_index=255)
    done = pad(image, np.zeros((0, 4)), None, [wide, depth])
    np.testing.assert_array_equal(done.maps[0][2:-2, 2:-2], wide)
    assert done.maps[0].dtype == np.int64
    assert (done.maps[0][:2] == 255).all()
    np.testing.assert_array_equal(done.maps[1][2:-2, 2:-2], depth)
    assert (done.maps[1][:, :2] == 0).all()
    with pytest.raises(ConfigError, match=r"must be in \[0, 65534\]"):
        pad(image, np.zeros((0, 4)), None, [wide + 70000])


@pytest.mark.parametrize(
    ("transform", "matrix"),
    [
        (dict(type="HorizontalFlip"), [[-1, 0, 112], [0, 1, 0], [0, 0, 1]]),
        (dict(type="VerticalFlip"), [[1, 0, 0], [0, -1, 96], [0, 0, 1]]),
        (dict(type="Transpose"), [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        (dict(type="Crop", x_min=10, y_min=5, x_max=90, y_max=70), [[1, 0, -10], [0, 1, -5], [0, 0, 1]]),
        (dict(type="CoarseDropout"), np.eye(3)),
    ],
)
def test_homography(transform, matrix):
    image, boxes, masks, _ = scene(0)
    done = Augmenter([dict(p=1.0, **transform)])(image, boxes, masks)
    np.testing.assert_allclose(done.homography, matrix, atol=1e-6)


def test_homography_of_a_distortion():
    image, boxes, masks, _ = scene(0)
    rotated = Augmenter([dict(type="Affine", rotate=(20, 20), scale=(1.3, 1.3), p=1.0)])(image, boxes, masks)
    centers = np.array([[*m.mean(1)[::-1] + 0.5, 1] for m in (np.argwhere(x).T for x in masks[rotated.kept])])
    moved = centers @ rotated.homography.T
    now = np.array([np.argwhere(x).mean(0)[::-1] + 0.5 for x in rotated.masks])
    whole = (rotated.boxes[:, :2] > 0).all(1) & (rotated.boxes[:, 2:] < [112, 96]).all(1)
    assert whole.any()
    np.testing.assert_allclose((moved[:, :2] / moved[:, 2:])[whole], now[whole], atol=0.5)
    np.random.seed(0)
    waves = Augmenter([dict(type="GridElasticDeform", num_grid_xy=(3, 3), magnitude=12, p=1.0)])(image, boxes, masks)
    assert waves.homography is None


def test_problems_have_a_place_and_a_remedy():
    transforms = [
        dict(type="HorizontalFlop"),
        dict(type="OneOf", transforms=[dict(type="Blur", blur_limits=3), dict(type="CLAHE", clip_limit=-3)]),
        dict(type="Normalize"),
        dict(type="Affine", fill_mask=255),
        dict(type="RandomCrop", height=20),
        "Blur",
    ]
    found = find_problems(transforms, "t")
    assert [line.split(" ")[0].rstrip(":") for line in found] == [
        "t.0.type='HorizontalFlop'", "t.1.transforms.0.blur_limits", "t.1.transforms.1", "t.2.type='Normalize'",
        "t.3.fill_mask=255", "t.4", "t.5",
    ]  # fmt: skip
    assert "did you mean HorizontalFlip" in found[0]
    assert "did you mean blur_limit" in found[1]
    assert "data_preprocessor" in found[3]
    assert "width" in found[5]
    assert all("\n" not in line for line in found)
    with pytest.raises(ConfigError, match=r"HorizontalFlip or .*\(and 6 more\)"):
        Augmenter(transforms)
    assert find_problems(dict(type="Blur")) == [
        "transforms must be a list of dict(type=..., ...), got {'type': 'Blur'}"
    ]


@pytest.mark.parametrize(("option", "value"), [("min_area", -1), ("min_visibility", 1.5)])
def test_values(option, value):
    with pytest.raises(ConfigError, match=f"`{option}` must be .* got {value}"):
        Augmenter([], **{option: value})


def test_every_transform_is_usable_or_refused_with_a_reason():
    """New releases bring new transforms; each needs a decision."""
    module = augment.load_albumentations()
    for name, cls in usable().items():
        needs = cls(**ARGUMENTS.get(name, {})).targets_as_params
        assert set(needs) <= {"image"}, f"{name} needs {needs}"
    for name in augment.REFUSED:
        assert inspect.isclass(getattr(module, name, None)) or name in ("ToTensorV2", "ToTensor3D"), name


def test_replaced_package_is_refused(monkeypatch):
    monkeypatch.setattr(augment, "version", lambda name: "2.0.13")
    with pytest.raises(MissingDependencyError, match=r"albumentationsx 2\.0\.13 is installed.*pip uninstall"):
        augment.load_albumentations()

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(augment, "version", absent)
    monkeypatch.setattr(augment.require("albumentations"), "__version__", "1.4.24")
    with pytest.raises(MissingDependencyError, match=r"got 1\.4\.24"):
        augment.load_albumentations()


def test_import_asks_no_server():
    """albumentations asks PyPI for its newest version when it is imported."""
    code = """
import os, socket
os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
def refuse(*args, **kwargs):
    raise SystemExit("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import visionattn.data.augment as augment
augment.load_albumentations()
import visionattn.openmmlab
import mmdet.datasets.transforms
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
