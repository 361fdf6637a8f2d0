"""Forgery datasets and transforms for mmseg's pipelines; class 1 is forged, and 255 does not count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset, pseudo_collate
from mmseg.datasets.transforms import PackSegInputs

from visionattn.engine.registry import DATASETS, FUNCTIONS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.forgery import sets as forgery_sets
from visionattn.heads.forgery.donors import FolderDonors, find_photos
from visionattn.heads.forgery.regions import REGION_SHAPES
from visionattn.heads.forgery.sets import BalancedSets, ForgeryItem, read_truth
from visionattn.heads.forgery.synthesis import OPERATIONS, ForgerySynthesis, compress

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
    """Pictures with masks of what was forged in them, as `visionattn.heads.forgery.sets` reads them.

    Args:
        layout: ``"pairs"`` (``images/`` and ``masks/``), ``"mani"`` (``Tp/`` and ``Gt/``), ``"brgen"`` (``Au/``,
            ``Tp/``, ``Gt/``), ``"json"`` (IMDLBenCo's list, named by ``ann_file``), or ``"photos"``: untouched
            photographs, for `ForgeImage` to forge.
        data_root: the folder.
        folders: of ``"photos"``: folders below ``data_root``; empty means all of it.
        with_authentic: of ``"mani"``: the pictures of ``Au/`` too.
        balanced: of ``"brgen"``: as many forged pictures as authentic ones, drawn at random.
        draw_seed: of that draw.
        every, offset: take each ``every``-th picture from the ``offset``-th on, such as of frames of a video.
        **arguments: of mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ConfigError: an unknown layout.
        DataError: the files are not as the layout says.
    """

    METAINFO: ClassVar[dict] = dict(classes=("authentic", "forged"), palette=[[0, 0, 0], [255, 82, 70]])

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
            raise ConfigError(f"ForgeryDataset layout={layout!r} must be one of {LAYOUTS}")
        if every < 1 or not 0 <= offset < every:
            raise ConfigError(f"ForgeryDataset every={every} must be at least 1, and offset={offset} below it")
        self.layout, self.folders = layout, tuple(folders)
        self.with_authentic, self.balanced, self.draw_seed = with_authentic, balanced, draw_seed
        self.every, self.offset = every, offset
        super().__init__(data_root=data_root, **arguments)

    def read_items(self) -> list[ForgeryItem]:
        """The pictures of the set."""
        root = Path(self.data_root or ".")
        if self.layout == "photos":
            paths = find_photos([root / folder for folder in self.folders] or root)
            return [ForgeryItem(path, None, source=path.stem) for path in paths]
        if self.layout == "json":
            return forgery_sets.read_json(self.ann_file, self.data_root or None)
        if self.layout == "mani":
            return forgery_sets.read_mani(root, self.with_authentic)
        if self.layout == "brgen":
            return forgery_sets.read_brgen(root, self.balanced, self.draw_seed)
        return forgery_sets.read_pairs(root)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Records of the pictures in mmseg's form."""
        items = self.read_items()[self.offset :: self.every]
        if not items:
            raise DataError(f"{self.data_root or self.ann_file}: holds no pictures of the layout {self.layout!r}")
        return [_record(item) for item in items]


@DATASETS.register_module()
class BalancedForgeryDataset(ForgeryDataset):
    """IMDLBenCo's ``BalancedDataset``: several sets, each giving ``sample_number`` pictures drawn at random.

    Args:
        ann_file: JSON of ``[["ManiDataset" or "JsonDataset", path], ...]``.
        sample_number: pictures of each set in an epoch.
        **arguments: of `ForgeryDataset` and mmengine's ``BaseDataset``.
    """

    def __init__(self, ann_file: str, sample_number: int = 1840, **arguments: Any) -> None:
        self.sample_number = sample_number
        super().__init__(ann_file=ann_file, **arguments)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record for each draw; what it holds comes with the draw."""
        self.sets = BalancedSets(self.ann_file, self.sample_number, root=self.data_root or None)
        return [{"img_path": f"draw {index}", "draw": index} for index in range(len(self.sets))]

    def prepare_data(self, idx: int) -> Any:
        """Draw a picture of the set whose turn it is; numpy's generator is seeded for each sample."""
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
    """Puts the mask, 1 where forged, into ``gt_seg_map``; zeros for an authentic picture.

    Raises:
        DataError: the mask cannot be read, or is not of the picture's size.
    """

    def transform(self, results: dict) -> dict:
        """Load the mask of the picture in ``results``."""
        path, size = results.get("seg_map_path"), tuple(results["ori_shape"])
        mask = np.zeros(size, np.uint8) if path is None else read_truth(path)
        if mask.shape != size:
            raise DataError(f"{path}: is {mask.shape[1]} x {mask.shape[0]}, its picture {size[1]} x {size[0]}")
        results["gt_seg_map"] = mask
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


@TRANSFORMS.register_module()
class ForgeryAugment(BaseTransform):
    """IMDLBenCo's training augmentations of picture and mask; numpy's generator is seeded for each sample."""

    reads_annotations = True  # prediction skips it

    def __init__(self) -> None:
        from visionattn.heads.forgery.benco import train_augmentations

        self.augment = train_augmentations()

    def transform(self, results: dict) -> dict:
        """Augment."""
        self.augment.set_random_seed(int(np.random.randint(2**31)))
        changed = self.augment(image=results["img"], mask=results["gt_seg_map"])
        results["img"], results["gt_seg_map"] = changed["image"], changed["mask"]
        results["img_shape"] = changed["image"].shape[:2]
        return results


@TRANSFORMS.register_module()
class ForgeImage(BaseTransform):
    """Makes a local forgery, or none, and its mask; see `visionattn.heads.forgery.synthesis.ForgerySynthesis`.

    Crop first: what comes after, such as resizing, changes the traces that a model is to find.

    Args:
        donors: folders of photographs that splices come from; empty means the picture itself.
        objects: COCO files with instances of the donors.
        root: what relative paths above start from.
        operations, probability, area, quality, feather, colour_match, geometry, shapes: of `ForgerySynthesis`.
        paired: forge every picture, and keep it untouched too, compressed alike, for `PackForgeryPair`.
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
        paired: bool = False,
    ) -> None:
        base, self.paired = Path(root), paired
        donor = FolderDonors([base / d for d in donors], [base / o for o in objects]) if donors else None
        self.synthesis = ForgerySynthesis(
            operations, probability, tuple(area), tuple(shapes), feather=feather, colour_match=colour_match,
            geometry=geometry, quality=None if quality is None else tuple(quality), donor=donor,
        )  # fmt: skip

    def transform(self, results: dict) -> dict:
        """Forge the picture in ``results``; numpy's generator is seeded for each sample."""
        image = np.ascontiguousarray(results["img"])
        forgery = self.synthesis(image, int(np.random.randint(2**31)), forge=True if self.paired else None)
        if self.paired:
            saved = self.synthesis.quality is not None
            results["untouched"] = compress(image, forgery.steps[-1]["quality"]) if saved else image
        results["img"], results["gt_seg_map"] = forgery.image, forgery.mask
        if "gt_seg_map" not in results.setdefault("seg_fields", []):
            results["seg_fields"].append("gt_seg_map")
        results["forgery_steps"] = forgery.steps
        return results


@TRANSFORMS.register_module()
class PackForgeryPair(BaseTransform):
    """Packs a forged picture and the same one untouched as two samples; it comes last, after `ForgeImage`.

    Only what was done tells the two apart, so that the label cannot be learned from what they show. The loader needs
    ``collate_fn=dict(type="visionattn.collate_pairs")``; a batch holds twice ``batch_size`` pictures.

    Args:
        meta_keys: of mmseg's ``PackSegInputs``.

    Raises:
        ConfigError: there is no untouched picture: `ForgeImage` has not ``paired=True``.
    """

    def __init__(self, meta_keys: Sequence[str]) -> None:
        self.pack = PackSegInputs(meta_keys=tuple(meta_keys))

    def transform(self, results: dict) -> list[dict]:
        """The forged sample and the untouched one."""
        if "untouched" not in results:
            raise ConfigError("PackForgeryPair needs ForgeImage(paired=True) before it")
        saved = [step for step in results["forgery_steps"] if step["operation"] == "save"]
        nothing = np.zeros_like(results["gt_seg_map"])
        untouched = {**results, "img": results["untouched"], "gt_seg_map": nothing, "forgery_steps": saved}
        return [self.pack(results), self.pack(untouched)]


@FUNCTIONS.register_module()
def collate_pairs(samples: Sequence[Sequence[dict]]) -> dict:
    """A batch of all samples of all pairs, as mmengine's ``pseudo_collate``."""
    return pseudo_collate([sample for pair in samples for sample in pair])
