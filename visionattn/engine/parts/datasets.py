"""An mmseg dataset of images with any file suffix and index masks."""

from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset

from visionattn.data.mask_folders import pair_masks, read_names
from visionattn.engine.registry import DATASETS

__all__ = ["MaskFolderDataset"]


@DATASETS.register_module()
class MaskFolderDataset(BaseSegDataset):
    """Images and index masks, paired by name as in `visionattn.data.mask_folders.pair_masks`; 255 is ignored.

    In a config: ``dict(type="visionattn.MaskFolderDataset", data_prefix=dict(img_path="images/train",
    seg_map_path="masks/train"), metainfo=dict(classes=[...], palette=[...]))``.

    Args:
        seg_map_suffix: suffix that is appended to the name of an image to get the name of its mask.
        **arguments: arguments of mmseg's ``BaseSegDataset``. ``ann_file`` may have the image names, one per line.

    Raises:
        DataError: an image has no mask, or a folder is missing.
    """

    def __init__(self, seg_map_suffix: str = ".png", **arguments: Any) -> None:
        super().__init__(seg_map_suffix=seg_map_suffix, **arguments)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one record per image, sorted by name."""
        names = read_names(Path(self.ann_file)) if self.ann_file else None
        folders = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        return [
            {
                "img_path": str(image),
                "seg_map_path": str(mask),
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for image, mask in pair_masks(*folders, names, self.seg_map_suffix)
        ]
