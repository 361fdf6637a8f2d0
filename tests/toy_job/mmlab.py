"""Model, data set, transform and metric, registered with OpenMMLab."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from visionattn.engine.registry import DATASETS, METRICS, MODELS, TRANSFORMS


@DATASETS.register_module()
class CountDataset(BaseDataset):
    """Images, and their numbers of squares in a JSON file."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one record per image."""
        counts = json.loads(Path(self.ann_file).read_text())
        folder = Path(self.ann_file).parent
        return [{"img_path": str(folder / name), "count": count} for name, count in counts.items()]


@TRANSFORMS.register_module()
class PackCount(BaseTransform):
    """Pack the image as a tensor, and the number as a data sample."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return inputs and data sample."""
        sample = BaseDataElement(metainfo={"img_path": results.get("img_path")})
        if "count" in results:
            sample.set_field(torch.tensor(float(results["count"])), "gt_count")
        image = torch.from_numpy(np.ascontiguousarray(results["img"].transpose(2, 0, 1)))
        return {"inputs": image, "data_samples": sample}


@MODELS.register_module()
class SquareCounter(BaseModel):
    """A backbone with a linear layer on the mean of its last map."""

    job = "counting"

    def __init__(self, backbone: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor or {"type": "ImgDataPreprocessor", "mean": [127.5] * 3, "std": [60.0] * 3})
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.num_features[-1], 1)

    def forward(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"):
        """Return losses, data samples with ``count``, or the numbers ``[B]``."""
        counts = self.head(self.backbone(inputs)[-1].mean((2, 3)))[:, 0]
        if mode == "loss":
            truth = torch.stack([sample.gt_count for sample in data_samples]).to(counts)
            return {"loss_count": (counts - truth).square().mean()}
        if mode == "predict":
            for sample, count in zip(data_samples, counts, strict=True):
                sample.set_field(count, "count")
            return list(data_samples)
        return counts


@METRICS.register_module()
class CountError(BaseMetric):
    """The mean absolute error, ``count_error``."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the error of each image."""
        self.results += [abs(float(sample["count"] - sample["gt_count"])) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Return the mean."""
        return {"count_error": float(np.mean(results))}
