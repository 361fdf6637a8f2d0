"""Forgery datasets and transforms for mmseg's pipelines; class 1 is forged, 255 is ignored."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset, pseudo_collate
from mmseg.datasets.transforms import PackSegInputs

from visionattn.engine.config.checks import loader_check, pipeline_steps
from visionattn.engine.registry import DATASETS, FUNCTIONS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.forgery import sets as forgery_sets
from visionattn.heads.forgery.create.donors import FolderDonors, find_photos
from visionattn.heads.forgery.create.regions import REGION_SHAPES
from visionattn.heads.forgery.create.synthesis import OPERATIONS, ForgerySynthesis
from visionattn.heads.forgery.sets import BalancedSets, ForgeryItem, check_items, read_truth
from visionattn.io.console import count_of
from visionattn.io.images import jpeg_round_trip

__all__ = [
    "BalancedForgeryDataset",
    "ForgeImage",
    "ForgeryAugment",
    "ForgeryDataset",
    "LoadForgeryMask",
    "PackForgeryPair",
    "collate_pairs",
]

LAYOUTS = ("pairs", "mani", "brgen", "json", "photos")


@DATASETS.register_module()
class ForgeryDataset(BaseDataset):
    """Images with forgery masks, see `visionattn.heads.forgery.sets`.

    Args:
        layout: ``"pairs"`` (``images/`` and ``masks/``), ``"mani"`` (``Tp/`` and ``Gt/``), ``"brgen"`` (``Au/``,
            ``Tp/``, ``Gt/``; ``ann_file`` can name a list of the authentic images of a split), ``"json"`` (a list of
            IMDLBenCo, given by ``ann_file``), or ``"photos"`` (authentic photographs, to be forged by `ForgeImage`).
        data_root: root folder.
        folders: for ``"photos"``, folders below ``data_root``; empty for all of it.
        with_authentic: for ``"mani"``, also use the images in ``Au/``.
        balanced: for ``"brgen"``, randomly draw as many forged images as there are authentic ones.
        draw_seed: random seed of ``balanced``.
        every, offset: use every ``every``-th image, starting at index ``offset``, for example for video frames.
        **arguments: passed to mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ConfigError: if the layout is unknown, or ``every`` or ``offset`` is out of range.
        DataError: if the files do not match the layout.
    """

    METAINFO: ClassVar[dict] = dict(classes=("authentic", "forged"), palette=[[0, 0, 0], [224, 40, 30]])

    def __init__(
        self,
        layout: str = "pairs",
        data_root: str = "",
        folders: Sequence[str] = (),
        with_authentic: bool = False,
        balanced: bool = False,
        draw_seed: int = 0,
        every: int = 1,
        offset: int = 0,
        **arguments: Any,
    ) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"ForgeryDataset: `layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if every < 1 or not 0 <= offset < every:
            raise ConfigError(
                f"ForgeryDataset: `every` must be at least 1 and `offset` in [0, every), got {every} and {offset}"
            )
        self.layout, self.folders = layout, tuple(folders)
        self.with_authentic, self.balanced, self.draw_seed = with_authentic, balanced, draw_seed
        self.every, self.offset = every, offset
        super().__init__(data_root=data_root, **arguments)

    def read_items(self) -> list[ForgeryItem]:
        """Read the items of the dataset."""
        root = Path(self.data_root or ".")
        if self.layout == "photos":
            paths = find_photos([root / folder for folder in self.folders] or root)
            return [ForgeryItem(path, None, source=path.stem) for path in paths]
        if self.layout == "json":
            return forgery_sets.read_json(self.ann_file, self.data_root or None)
        if self.layout == "mani":
            return forgery_sets.read_mani(root, self.with_authentic)
        if self.layout == "brgen":
            return forgery_sets.read_brgen(root, self.balanced, self.draw_seed, self.ann_file or None)
        return forgery_sets.read_pairs(root)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per image in mmseg's format."""
        items = self.read_items()[self.offset :: self.every]
        if not items:
            raise DataError(f"{self.data_root or self.ann_file}: contains no images with layout {self.layout!r}")
        return [_record(item) for item in items]

    def check(self, steps: Sequence[Mapping[str, Any]] = ()) -> str:
        """Read all masks, and return the number of forged and authentic images.

        Args:
            steps: the pipeline; with `ForgeImage`, no image has to be forged.

        Raises:
            DataError: see `visionattn.heads.forgery.sets.check_items`; or nothing is forged, in a layout with masks.
        """
        forged, authentic, empty = check_items(self.read_items()[self.offset :: self.every])
        if self.layout == "photos":
            return f"{count_of(authentic, 'photograph')}"
        if not forged:
            if any(str(step.get("type")).endswith("ForgeImage") for step in steps):
                return count_of(authentic, "image")
            raise DataError(
                f"{self.data_root or self.ann_file}: none of the {authentic} images is forged; correct the masks, or "
                "use layout='photos' and ForgeImage for photographs"
            )
        notes = [f"{count_of(forged + authentic, 'image')}, {forged} forged"]
        if empty:
            notes.append(f"{empty} with a mask that marks nothing, as authentic")
        if not authentic:
            notes.append("none is authentic, so that scores of whole images mean nothing")
        return "; ".join(notes)


@DATASETS.register_module()
class BalancedForgeryDataset(ForgeryDataset):
    """IMDLBenCo's ``BalancedDataset``: the same number of random samples from each of several datasets.

    Args:
        ann_file: JSON file with ``[["ManiDataset" or "JsonDataset", path], ...]``.
        sample_number: number of samples of each dataset per epoch.
        **arguments: further arguments of `ForgeryDataset` and mmengine's ``BaseDataset``.
    """

    def __init__(self, ann_file: str, sample_number: int = 1840, **arguments: Any) -> None:
        self.sample_number = sample_number
        super().__init__(ann_file=ann_file, **arguments)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per draw; the image is chosen on access."""
        self.sets = BalancedSets(self.ann_file, self.sample_number, root=self.data_root or None)
        return [{"img_path": f"draw {index}", "draw": index} for index in range(len(self.sets))]

    def read_items(self) -> list[ForgeryItem]:
        """Read the items of all datasets."""
        return [item for items in self.sets.sets for item in items]

    def prepare_data(self, idx: int) -> Any:
        """Draw an image of the dataset at this index; the draw depends on NumPy's global random state."""
        item = self.sets.draw(self.get_data_info(idx)["draw"], int(np.random.randint(2**31)))
        return self.pipeline({**_record(item), "sample_idx": idx})


def _record(item: ForgeryItem) -> dict[str, Any]:
    return {
        "img_path": str(item.image),
        "seg_map_path": None if item.mask is None else str(item.mask),
        "source": item.source,
        "kind": item.kind,
        "label_map": None,
        "reduce_zero_label": False,
        "seg_fields": [],
    }


@TRANSFORMS.register_module()
class LoadForgeryMask(BaseTransform):
    """Load the mask (1 where forged) into ``gt_seg_map``; zeros for authentic images.

    Raises:
        DataError: if the mask cannot be read, or does not have the size of the image.
    """

    def transform(self, results: dict) -> dict:
        """Load the mask of the image in ``results``."""
        path, size = results.get("seg_map_path"), tuple(results["ori_shape"])
        mask = np.zeros(size, np.uint8) if path is None else read_truth(path)
        if mask.shape != size:
            raise DataError(
                f"{path}: must have the size of its image {size[1]} x {size[0]}, got {mask.shape[1]} x {mask.shape[0]}"
            )
        results["gt_seg_map"] = mask
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


@TRANSFORMS.register_module()
class ForgeryAugment(BaseTransform):
    """Training augmentations of IMDLBenCo, see `visionattn.heads.forgery.benco.train_augmentations`.

    They are seeded from NumPy's global random state.
    """

    reads_annotations = True  # prediction skips it

    def __init__(self) -> None:
        from visionattn.heads.forgery.benco import train_augmentations

        self.augment = train_augmentations()

    def transform(self, results: dict) -> dict:
        """Augment the image and mask in ``results``."""
        self.augment.set_random_seed(int(np.random.randint(2**31)))
        changed = self.augment(image=results["img"], mask=results["gt_seg_map"])
        results["img"], results["gt_seg_map"] = changed["image"], changed["mask"]
        results["img_shape"] = changed["image"].shape[:2]
        return results


@TRANSFORMS.register_module()
class ForgeImage(BaseTransform):
    """Randomly forge a region of the image and create its mask; see
    `visionattn.heads.forgery.create.synthesis.ForgerySynthesis`.

    Crop before this transform: later steps such as resizing alter the traces that a model should detect.

    Args:
        donors: folders of donor photographs for splicing; empty to splice from the image itself.
        objects: COCO instance files of the donors.
        root: root folder of relative paths in ``donors`` and ``objects``.
        operations, probability, area, quality, feather, colour_match, geometry, shapes, max_seam: see
            `ForgerySynthesis`.
        paired: forge every image, and also keep the authentic image with the same compression, for `PackForgeryPair`.
    """

    reads_annotations = True  # prediction skips it

    def __init__(
        self,
        donors: Sequence[str] = (),
        objects: Sequence[str] = (),
        root: str = "",
        operations: Any = OPERATIONS,
        probability: float = 0.5,
        area: tuple[float, float] = (0.02, 0.25),
        quality: tuple[int, int] | None = (70, 100),
        feather: float = 5.0,
        colour_match: float = 0.3,
        geometry: float = 0.5,
        shapes: Sequence[str] = REGION_SHAPES,
        max_seam: float | None = None,
        paired: bool = False,
    ) -> None:
        base, self.paired = Path(root), paired
        donor = FolderDonors([base / d for d in donors], [base / o for o in objects]) if donors else None
        self.synthesis = ForgerySynthesis(
            operations, probability, tuple(area), tuple(shapes), feather=feather, colour_match=colour_match,
            geometry=geometry, quality=None if quality is None else tuple(quality), max_seam=max_seam, donor=donor,
        )  # fmt: skip

    def transform(self, results: dict) -> dict:
        """Forge the image in ``results``; the forgery is seeded from NumPy's global random state."""
        image = np.ascontiguousarray(results["img"])
        forgery = self.synthesis(image, int(np.random.randint(2**31)), forge=True if self.paired else None)
        if self.paired:
            saved = self.synthesis.quality is not None
            results["untouched"] = jpeg_round_trip(image, forgery.steps[-1]["quality"]) if saved else image
        results["img"], results["gt_seg_map"] = forgery.image, forgery.mask
        if "gt_seg_map" not in results.setdefault("seg_fields", []):
            results["seg_fields"].append("gt_seg_map")
        results["forgery_steps"] = forgery.steps
        return results


@TRANSFORMS.register_module()
class PackForgeryPair(BaseTransform):
    """Pack a forged image and its authentic version as two samples; the last step, after `ForgeImage`.

    The two differ only in the forgery, so the label cannot be learned from the scene content. The data loader needs
    ``collate_fn=dict(type="visionattn.collate_pairs")``; a batch has twice ``batch_size`` images.

    Args:
        meta_keys: see mmseg's ``PackSegInputs``.

    Raises:
        ConfigError: if there is no authentic image because `ForgeImage` was not used with ``paired=True``.
    """

    def __init__(self, meta_keys: Sequence[str]) -> None:
        self.pack = PackSegInputs(meta_keys=tuple(meta_keys))

    def transform(self, results: dict) -> list[dict]:
        """Pack the forged and the authentic sample."""
        if "untouched" not in results:
            raise ConfigError("PackForgeryPair: must follow ForgeImage with `paired` True")
        saved = [step for step in results["forgery_steps"] if step["operation"] == "save"]
        nothing = np.zeros_like(results["gt_seg_map"])
        untouched = {**results, "img": results["untouched"], "gt_seg_map": nothing, "forgery_steps": saved}
        return [self.pack(results), self.pack(untouched)]


@FUNCTIONS.register_module()
def collate_pairs(samples: Sequence[Sequence[dict]]) -> dict:
    """Collate all samples of all pairs with mmengine's ``pseudo_collate``."""
    return pseudo_collate([sample for pair in samples for sample in pair])


@loader_check
def pair_problems(loader: Mapping[str, Any], path: str) -> Iterator[str]:
    """Check that pairs are created by one transform, packed by another and collated by the dataloader."""
    steps = pipeline_steps(loader)
    packed = any(step.get("type") == "visionattn.PackForgeryPair" for step in steps)
    created = any(step.get("type") == "visionattn.ForgeImage" and step.get("paired") for step in steps)
    collate = loader.get("collate_fn")
    collated = isinstance(collate, Mapping) and collate.get("type") == "visionattn.collate_pairs"
    if packed and not created:
        yield f"{path}.dataset.pipeline: visionattn.PackForgeryPair requires visionattn.ForgeImage with paired=True"
    if packed != collated:
        parts = [
            f"{path}.dataset.pipeline with visionattn.PackForgeryPair",
            f"{path}.collate_fn=dict(type='visionattn.collate_pairs')",
        ]
        given, missing = parts if packed else reversed(parts)
        yield f"{given} requires {missing}"
