"""The jobs of semantic and panoptic segmentation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import nn

from visionattn.data.panoptic import id2rgb
from visionattn.data.recipes import DataSummary, Recipe, Request
from visionattn.heads.segmentation.analysis import PanopticAnalysis, SemanticAnalysis
from visionattn.heads.segmentation.export import restore_map, restore_panoptic
from visionattn.heads.segmentation.panoptic_tiles import merge_panoptic_tiles
from visionattn.heads.segmentation.recipe import semantic_recipe
from visionattn.heads.segmentation.segments import decode_segments
from visionattn.inference.analysis.base import TestData
from visionattn.inference.blending import MapCanvas, ViewSum
from visionattn.inference.decoding import look_up, pixel_logits, to_array
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import Merger, RunTotals, View
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.inference.options import ExportOptions
from visionattn.inference.results import Prediction
from visionattn.inference.tiling import Tile

__all__ = ["JOBS", "PanopticJob", "SemanticJob"]


class _MapJob(ImageJob):
    """A job that predicts the class of each pixel."""

    tiles = styled = dataset_colors = True  # semantic maps are usually shown in the colors of their dataset
    record_types: ClassVar[Mapping[str, Any]] = {"pixel_shares": {str: float}}

    @classmethod
    def matches(cls, model: type, config: Mapping[str, Any]) -> bool:
        """Return True for models of mmseg and mmdet that perform this job."""
        from visionattn.heads.segmentation.mmlab_models import segments

        return super().matches(model, config) or segments(model, config) == cls.name

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory per pixel; logits are resized to the size of the image, and copied."""
        return super().pixel_bytes + 8 * len(self.classes)

    def maps(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """Return the class index of each pixel."""
        return {"map": prediction.semantic}

    def shares(self, prediction: Prediction) -> dict[str, float]:
        """Return the share of all pixels by class."""
        values, counts = np.unique(prediction.semantic, return_counts=True)
        return {
            self.classes[value]: round(count / prediction.semantic.size, 5)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
            if 0 <= value < len(self.classes)
        }

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the shares of the classes, largest first."""
        shares = sorted(record["pixel_shares"].items(), key=lambda item: -item[1])
        return [", ".join(f"{name} {share:.1%}" for name, share in shares)] if shares else []


class SemanticJob(_MapJob):
    """The class of each pixel."""

    name = "semantic"
    views = True
    trains_on = "maps"

    @classmethod
    def recipe(cls, data: DataSummary, request: Request) -> Recipe:
        """Return how a segmentor is trained on the data."""
        return semantic_recipe(data, request)

    @classmethod
    def analysis(cls, data: TestData) -> SemanticAnalysis:
        """Return the analysis of pixels."""
        return SemanticAnalysis(data)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> FinalOutputs:
        """Return the final outputs."""
        from visionattn.heads.segmentation.mmlab_export import final_outputs

        return final_outputs(model, options)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_map(outputs, about, geometry)

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the map of classes."""
        return Prediction(size, semantic=_semantic_map(output), **self.common())

    def merger(self, item: np.ndarray, views: Sequence[View], overlap: int) -> "MapMerger":
        """Return a merger by mean probabilities."""
        return MapMerger(self, item.shape[:2], len(views), overlap)

    def record(self, prediction: Prediction, index: int) -> dict[str, Any]:
        """Return the share of all pixels by class."""
        return {"pixel_shares": self.shares(prediction)}

    def count(self, prediction: Prediction) -> Counter:
        """Return the share of all pixels by class."""
        return Counter(self.shares(prediction))

    def summary(self, tally: RunTotals) -> str:
        """Return the mean shares of the classes."""
        shares = (f"{name} {value / max(1, tally.inputs):.1%}" for name, value in tally.found.most_common())
        return "pixels: " + (", ".join(shares) or "none")

    def legend(self, tally: RunTotals) -> dict[str, str]:
        """Return the mean shares of the classes."""
        return {name: f"{value / max(1, tally.inputs):.1%}" for name, value in tally.found.most_common()}


class PanopticJob(_MapJob):
    """The segment and the class of each pixel."""

    name = "panoptic"
    thresholded = True
    record_types: ClassVar[Mapping[str, Any]] = {
        **ImageJob.record_types,
        **_MapJob.record_types,
        "segments_info": [{"id": int, "category_id": int, "area": int}],
    }

    @classmethod
    def analysis(cls, data: TestData) -> PanopticAnalysis:
        """Return the analysis of segments."""
        return PanopticAnalysis(data)

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory per pixel; the masks of all queries or boxes are resized to the image."""
        test_cfg = look_up(self.model.cfg, "model", "panoptic_fusion_head", "test_cfg") or {}
        masks = test_cfg.get("max_per_image") or 100
        return super().pixel_bytes + 12 * int(masks)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> FinalOutputs:
        """Return the final outputs."""
        from visionattn.heads.segmentation.mmlab_export import final_outputs

        return final_outputs(model, options)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_panoptic(outputs, about, geometry)

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the segments: one mask, box and label each, with a score of 1.

        Pixels without a class have the number of classes as their value in ``semantic``.
        """
        ids = to_array(output.pred_panoptic_seg.sem_seg[0], np.int64)
        return Prediction(size, **decode_segments(ids, len(self.classes)), **self.common())

    def merger(self, item: np.ndarray, views: Sequence[View], overlap: int) -> "PanopticMerger":
        """Return a merger that matches segments in the overlap of tiles."""
        return PanopticMerger(self, item.shape[:2])

    def maps(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """Return the class index of each pixel, and the segments in the format of COCO panoptic."""
        return super().maps(prediction) | {"panoptic": id2rgb(prediction.panoptic.segments)[..., ::-1]}

    def record(self, prediction: Prediction, index: int) -> dict[str, Any]:
        """Return detections, pixel shares and ``segments_info`` in the format of COCO panoptic."""
        found = prediction.panoptic
        ids = self.category_ids or range(1, len(self.classes) + 1)
        areas = np.bincount(found.segments.ravel(), minlength=len(found.labels) + 1)[1:]
        segments = [
            {"id": number, "category_id": int(ids[label]), "area": int(area)}
            for number, (label, area) in enumerate(zip(found.labels, areas, strict=True), 1)
        ]
        return super().record(prediction, index) | {
            "pixel_shares": self.shares(prediction),
            "segments_info": segments,
        }

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the number of segments by class, and the shares of the classes."""
        return [", ".join(f"{name} {count}" for name, count in counts.most_common()), *super().lines(record, counts)]


class MapMerger(Merger):
    """Averages class probabilities over the views of a tile, and blends the tiles.

    Args:
        job: the job.
        size: (height, width) of the image in pixels.
        views: number of views of each tile.
        overlap: overlap of neighboring tiles in pixels.
    """

    def __init__(self, job: SemanticJob, size: tuple[int, int], views: int, overlap: int) -> None:
        self.job, self.size = job, size
        self.canvas = MapCanvas(size, overlap)
        self.sum = ViewSum(views)
        head = getattr(job.model.model, "decode_head", None)
        self.threshold = float(getattr(head, "threshold", None) or 0.5)

    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add the probabilities of one view of one tile."""
        for done, values in self.sum.add(tile, pixel_logits(output, self.threshold), view.mirrored):
            self.canvas.add(done, values)

    def result(self) -> Prediction:
        """Return the map of classes."""
        return Prediction(self.size, semantic=self.canvas.result(), **self.job.common())


class PanopticMerger(Merger):
    """Merges the segments of tiles; see `visionattn.heads.segmentation.panoptic_tiles`.

    Args:
        job: the job.
        size: (height, width) of the image in pixels.
    """

    def __init__(self, job: PanopticJob, size: tuple[int, int]) -> None:
        self.job, self.size = job, size
        self.found: dict[Tile, Prediction] = {}

    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add the segments of one tile."""
        self.found[tile] = self.job.prediction(output, (tile[3] - tile[1], tile[2] - tile[0]))

    def result(self) -> Prediction:
        """Return the merged segments."""
        things = self.job.model.model.panoptic_fusion_head.num_things_classes
        return merge_panoptic_tiles(list(self.found.values()), list(self.found), self.size, things)


def _semantic_map(output: Any) -> np.ndarray:
    data = output.pred_sem_seg
    return to_array(data.data if "data" in data else data.sem_seg, np.int64)[0]


JOBS = (SemanticJob, PanopticJob)
