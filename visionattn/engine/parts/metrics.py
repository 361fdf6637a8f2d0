"""mmdet's COCO metric for images with more than a hundred objects.

Imported on the first use of a metric of this package in a config, as it needs mmdet, which segmentation does not.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.evaluation.metrics import coco_metric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError

__all__ = ["CocoMetric"]


class _WholeEval(coco_metric.COCOeval):
    """COCOeval whose first figure, AP, counts the most detections an image, as its AP50 and AP75 do."""

    def summarize(self) -> None:
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen):
            super().summarize()
        precision = self.eval["precision"][:, :, :, 0, -1]  # thresholds x recalls x classes
        found = precision[precision > -1]
        self.stats[0] = found.mean() if found.size else -1.0
        first, *rest = screen.getvalue().splitlines()
        start = first.split("maxDets=")[0]
        print(f"{start}maxDets={self.params.maxDets[-1]:>3d} ] = {self.stats[0]:0.3f}", *rest, sep="\n")


@METRICS.register_module()
class CocoMetric(coco_metric.CocoMetric):
    """``mmdet.CocoMetric`` with an AP over as many detections as its other figures.

    pycocotools takes AP over the 100 best detections of an image, whatever ``proposal_nums`` says, and gives -1
    where 100 is not among them; AP50 and the others are over ``proposal_nums[2]``. With 300 cells in an image the
    two cannot be compared. Here all are over ``proposal_nums[2]``. Where no image has more than 100 detections,
    the figures are those of mmdet.

    Args:
        proposal_nums: three rising numbers of detections an image; the last one counts.
        *args, **kwargs: as for ``mmdet.CocoMetric``.

    Raises:
        ConfigError: ``proposal_nums`` are not three rising numbers.
    """

    def __init__(self, *args: Any, proposal_nums: Sequence[int] = (100, 300, 1000), **kwargs: Any) -> None:
        if len(proposal_nums) != 3 or list(proposal_nums) != sorted(set(proposal_nums)) or proposal_nums[0] < 1:
            raise ConfigError(f"CocoMetric proposal_nums={proposal_nums}: must be three rising numbers above 0")
        super().__init__(*args, proposal_nums=proposal_nums, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The figures of all images' results."""
        with _whole_eval():
            return super().compute_metrics(results)


@contextlib.contextmanager
def _whole_eval() -> Iterator[None]:
    """mmdet names the class that sums up in the middle of a long method; exchange it for as long as that runs."""
    before = coco_metric.COCOeval
    coco_metric.COCOeval = _WholeEval
    try:
        yield
    finally:
        coco_metric.COCOeval = before
