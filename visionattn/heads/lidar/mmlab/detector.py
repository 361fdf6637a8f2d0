"""LiDAR detector for mmengine: voxelization, voxel encoder, sparse backbone, dense neck and head."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.lidar.center_head import CenterHead
from visionattn.heads.lidar.data.voxelize import Voxels, grid_size, voxelize
from visionattn.heads.lidar.decoding import Decoding
from visionattn.heads.lidar.neck import CascadeDED
from visionattn.heads.lidar.targets import BEVGrid
from visionattn.heads.lidar.transfusion_head import TransFusionHead
from visionattn.heads.lidar.voxel_encoder import VoxelEncoder

__all__ = ["BEVDetector", "PointDataPreprocessor", "SparseBackbone"]

OFFICIAL = {"vfe": "voxel_encoder", "backbone_3d": "backbone.net", "backbone_2d": "neck", "dense_head": "bbox_head"}
"""Maps module names of OpenPCDet's detectors to those of `BEVDetector`."""

MODELS.register_module(name="VoxelEncoder", module=VoxelEncoder)
MODELS.register_module(name="CenterHead", module=CenterHead)
MODELS.register_module(name="TransFusionHead", module=TransFusionHead)
MODELS.register_module(name="CascadeDED", module=CascadeDED)


@MODELS.register_module()
class PointDataPreprocessor(BaseDataPreprocessor):
    """Move points to the model's device and voxelize them there.

    Args:
        point_cloud_range: minimum x, y, z and maximum x, y, z, in meters.
        voxel_size: voxel size along x, y, z, in meters.
        tanh_columns: point columns to which tanh is applied, such as Waymo's intensity and elongation.
        intensity_max: intensities, the fourth column in [0, 1], are multiplied by this number.
        x_right: rotate the points from x forward, y left to x right, y forward.
        non_blocking: whether the transfer is asynchronous.

    Raises:
        ConfigError: if the range is not a multiple of the voxel size.
    """

    def __init__(
        self,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        tanh_columns: Sequence[int] = (),
        intensity_max: float = 1.0,
        x_right: bool = False,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        try:
            grid_size(point_cloud_range, voxel_size)
        except ValueError as error:
            raise ConfigError(f"model.data_preprocessor: {error}") from error
        self.point_cloud_range, self.voxel_size = tuple(point_cloud_range), tuple(voxel_size)
        self.tanh_columns, self.intensity_max, self.x_right = list(tanh_columns), intensity_max, x_right

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Convert a collated batch; ``inputs`` becomes ``{"voxels": Voxels}``."""
        data = self.cast_data(data)
        points = list(data["inputs"]["points"])
        if self.tanh_columns or self.x_right or self.intensity_max != 1:
            points = [self._changed(cloud.clone()) for cloud in points]
        voxels = voxelize(points, self.point_cloud_range, self.voxel_size)
        return {"inputs": {"voxels": voxels}, "data_samples": data.get("data_samples")}

    def _changed(self, cloud: Tensor) -> Tensor:
        if self.x_right:
            cloud = _turn(cloud, 1)
        if self.intensity_max != 1:
            cloud[:, 3] *= self.intensity_max
        cloud[:, self.tanh_columns] = cloud[:, self.tanh_columns].tanh()
        return cloud


def _turn(rows: Tensor, quarter: int, heading: bool = False) -> Tensor:
    """Rotate rows that begin with x and y by ``quarter`` * 90°, 1 or -1, counter-clockwise.

    Args:
        rows: ``[N, C]``.
        quarter: 1 or -1.
        heading: whether the seventh column is a heading, which is returned in [-pi, pi).
    """
    turned = torch.cat([-quarter * rows[:, 1:2], quarter * rows[:, :1], rows[:, 2:]], 1)
    if heading:
        turned[:, 6] = torch.remainder(rows[:, 6] + quarter * math.pi / 2 + math.pi, 2 * math.pi) - math.pi
    return turned


@MODELS.register_module()
class SparseBackbone(BaseModule):
    """A timm model that maps voxels to bird's-eye-view features, such as ``scatterformer_waymo``.

    Args:
        model_name: name of the timm model.
        init_cfg: see ``mmengine.model.BaseModule``.
        **kwargs: passed to ``timm.create_model``, such as ``window_size``.

    Raises:
        ConfigError: if the name or an argument is unknown to timm, or the model does not accept voxels.
    """

    open_arguments = True

    def __init__(self, model_name: str, init_cfg: dict | list | None = None, **kwargs: Any) -> None:
        super().__init__(init_cfg)
        if not timm.is_model(model_name.split(".", 1)[0]):
            raise ConfigError(
                f"backbone: `model_name` must be a model registered with timm (see timm.list_models()), "
                f"got {model_name!r}"
            )
        try:
            self.net = timm.create_model(model_name, num_classes=0, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"backbone {model_name}: {' '.join(str(error).split())}") from error
        if not hasattr(self.net, "forward_sparse"):
            raise ConfigError(
                f"backbone: `model_name` must be a model of voxels, such as scatterformer_waymo, "
                f"got the image model {model_name!r}"
            )
        self.num_features = [int(self.net.num_features)]

    def init_weights(self) -> None:
        """Do nothing: timm initialized the weights."""
        self._is_init = True

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Map voxel features ``[V, C]`` at int64 ``[V, 4]`` (batch, z, y, x) to ``[B, C', H, W]``."""
        return self.net.forward_sparse(features, coords, batch_size)


@MODELS.register_module()
class BEVDetector(BaseModel):
    """LiDAR detector.

    In ``"predict"`` mode, each data sample gets ``pred_instances`` with ``boxes`` ``[N, 7]``, ``scores``, ``labels``
    and, if the head predicts it, ``velocity``.

    Args:
        point_cloud_range: minimum x, y, z and maximum x, y, z in meters; passed to data preprocessor, voxel encoder,
            backbone and head.
        voxel_size: voxel size along x, y, z in meters; passed on likewise.
        voxel_encoder: config of the voxel encoder.
        backbone: config of the backbone, which maps voxel features to bird's-eye-view features.
        bbox_head: config of a ``visionattn.CenterHead`` or ``visionattn.TransFusionHead``; its ``decoding`` has the
            fields of `visionattn.heads.lidar.decoding.Decoding`.
        neck: config of the neck, such as ``visionattn.CascadeDED``; None for no neck.
        data_preprocessor: further arguments of `PointDataPreprocessor`.
        stride: voxels per cell of the backbone's output.
        x_right: whether the network works in axes x right, y forward, as those of nuScenes' sensor, for which its
            authors trained it. Data and predictions are in x forward, y left; they are rotated here. The range must
            be the same for x and y, and symmetric.
        init_cfg: see ``mmengine.model.BaseModule``.

    Raises:
        ConfigError: if the parts do not match.
    """

    job = "points"

    def __init__(
        self,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        voxel_encoder: dict,
        backbone: dict,
        bbox_head: dict,
        neck: dict | None = None,
        data_preprocessor: dict | None = None,
        stride: int = 2,
        x_right: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        x0, y0, _, x1, y1, _ = point_cloud_range
        if x_right and not -x0 == -y0 == x1 == y1:
            raise ConfigError(
                f"model: `point_cloud_range` must be symmetric and the same for x and y with `x_right`, "
                f"got {list(point_cloud_range)}"
            )
        geometry = dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size)
        super().__init__(
            {"type": "visionattn.PointDataPreprocessor", "x_right": x_right, **(data_preprocessor or {}), **geometry},
            init_cfg,
        )
        self.x_right = x_right
        self.grid = grid_size(point_cloud_range, voxel_size)
        head = dict(bbox_head)
        try:
            head["decoding"] = Decoding(**(head.get("decoding") or {}))
            self.voxel_encoder = MODELS.build({**voxel_encoder, **geometry})
            self.backbone = MODELS.build({**backbone, "grid_size": self.grid})
            self.neck = MODELS.build(neck) if neck else None
            self.bbox_head = MODELS.build({**head, "grid": BEVGrid.of(point_cloud_range, voxel_size, stride)})
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the weights of an OpenPCDet checkpoint to this model's names; return other weights unchanged."""
        if not any(name.startswith("dense_head.") for name in weights):
            return weights
        parts = ((name.partition("."), value) for name, value in weights.items() if name != "global_step")
        return {f"{OFFICIAL.get(first, first)}.{rest}": value for (first, _, rest), value in parts}

    def extract(self, voxels: Voxels) -> Tensor:
        """Compute the input features of the head, ``[B, C, H, W]``."""
        features = self.voxel_encoder(voxels)
        x = self.backbone(features, voxels.coords, voxels.batch_size)
        return x if self.neck is None else self.neck(x)

    def forward(
        self, inputs: dict[str, Any], data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"
    ) -> Any:
        """Run the model.

        Args:
            inputs: ``{"voxels": Voxels}``, from `PointDataPreprocessor`.
            data_samples: one data sample for each point cloud; needed for ``"loss"`` and ``"predict"``.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            A dict of losses, the data samples with ``pred_instances``, or the outputs of the head.
        """
        outputs = self.bbox_head(self.extract(inputs["voxels"]))
        if mode == "loss":
            truth = [sample.gt_instances for sample in data_samples]
            boxes = [t.boxes for t in truth]
            velocity = [t.velocity for t in truth] if all("velocity" in t for t in truth) else None
            if self.x_right:
                boxes = [_turn(rows, 1, heading=True) for rows in boxes]
                velocity = velocity and [_turn(rows, 1) for rows in velocity]
            return self.bbox_head.loss(outputs, boxes, [t.labels for t in truth], velocity)
        if mode == "predict":
            return self._predict(outputs, data_samples)
        return outputs

    def _predict(self, outputs: list[dict[str, Tensor]], data_samples: Sequence[BaseDataElement]) -> list[Any]:
        if not all(torch.isfinite(value).all() for output in outputs for value in output.values()):
            raise CheckpointError("the model outputs NaN or infinity; the checkpoint is from a diverged training run")
        for found, sample in zip(self.bbox_head.predict(outputs), data_samples, strict=True):
            boxes = _turn(found.boxes, -1, heading=True) if self.x_right else found.boxes
            values = dict(boxes=boxes, scores=found.scores, labels=found.labels)
            if found.velocity is not None:
                values["velocity"] = _turn(found.velocity, -1) if self.x_right else found.velocity
            sample.set_field(InstanceData(**values), "pred_instances")
        return list(data_samples)
