"""The COCO metric of mmdet for images with more than 100 objects."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.evaluation.metrics import coco_metric

from visionattn.engine.registry import METRICS
from visionattn.errors import ConfigError

__all__ = ["CocoMetric"]


class _WholeEval(coco_metric.COCOeval):
    """COCOeval that computes AP with the largest number of detections per image, as AP50 and AP75."""

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
    """``mmdet.CocoMetric`` that computes AP with the same number of detections per image as the other metrics.

    pycocotools always computes AP with the 100 best detections per image, and returns -1 if ``proposal_nums`` does not
    contain 100, whereas AP50 and the other metrics use ``proposal_nums[2]``. They cannot be compared for images with
    more objects. Here all metrics use ``proposal_nums[2]``. The results equal those of mmdet if no image has more than
    100 detections.

    Args:
        proposal_nums: three ascending numbers of detections per image. The metrics use the last one.
        args, kwargs: arguments of ``mmdet.CocoMetric``.

    Raises:
        ConfigError: ``proposal_nums`` are not three ascending numbers.
    """

    def __init__(self, *args: Any, proposal_nums: Sequence[int] = (100, 300, 1000), **kwargs: Any) -> None:
        if len(proposal_nums) != 3 or list(proposal_nums) != sorted(set(proposal_nums)) or proposal_nums[0] < 1:
            raise ConfigError(f"`proposal_nums` must be three ascending positive numbers, got {proposal_nums}")
        super().__init__(*args, proposal_nums=proposal_nums, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics from the results for all images."""
        with _whole_eval():
            return super().compute_metrics(results)


@contextlib.contextmanager
def _whole_eval() -> Iterator[None]:
    """Replace the COCOeval class that mmdet uses inside of ``compute_metrics``."""
    before = coco_metric.COCOeval
    coco_metric.COCOeval = _WholeEval
    try:
        yield
    finally:
        coco_metric.COCOeval = before
