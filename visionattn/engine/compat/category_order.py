"""Category ids in the order of the class names.

mmdet numbers the labels of a COCO file in the order in which the file lists its categories, even if ``metainfo`` names
the classes in another order: labels and names are then exchanged, in training and in evaluation.
"""

from collections.abc import Sequence
from typing import Any

__all__ = ["install"]


def install() -> None:
    """Make ``get_cat_ids(cat_names=...)`` of mmdet return ids in the order of the names. Repeated calls do nothing."""
    from mmdet.datasets.api_wrappers import COCO

    stock = COCO.get_cat_ids
    if getattr(stock, "_follows_names", False):
        return

    def get_cat_ids(self: Any, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        found = stock(self, list(cat_names), list(sup_names), list(cat_ids))
        names = [cat_names] if isinstance(cat_names, str) else list(cat_names)
        if not names:
            return found
        return sorted(found, key=lambda number: names.index(self.cats[number]["name"]))

    get_cat_ids._follows_names = True  # type: ignore[attr-defined]
    COCO.get_cat_ids = get_cat_ids
