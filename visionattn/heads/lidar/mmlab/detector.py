"""LiDAR detector for mmengine: voxelization, voxel encoder, sparse backbone, dense neck and head."""

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
        non_blocking: whether the transfer is asynchronous.

    Raises:
        ConfigError: if the range is not a multiple of the voxel size.
    """

    def __init__(
        self,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        tanh_columns: Sequence[int] = (),
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        try:
            grid_size(point_cloud_range, voxel_size)
        except ValueError as error:
            raise ConfigError(f"model.data_preprocessor: {error}") from error
        self.point_cloud_range, self.voxel_size = tuple(point_cloud_range), tuple(voxel_size)
        self.tanh_columns = list(tanh_columns)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Convert a collated batch; ``inputs`` becomes ``{"voxels": Voxels}``."""
        data = self.cast_data(data)
        points = list(data["inputs"]["points"])
        if self.tanh_columns:
            points = [cloud.clone() for cloud in points]
            for cloud in points:
                cloud[:, self.tanh_columns] = cloud[:, self.tanh_columns].tanh()
        voxels = voxelize(points, self.point_cloud_range, self.voxel_size)
        return {"inputs": {"voxels": voxels}, "data_samples": data.get("data_samples")}


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
        init_cfg: dict | None = None,
    ) -> None:
        geometry = dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size)
        super().__init__(
            {"type": "visionattn.PointDataPreprocessor", **(data_preprocessor or {}), **geometry}, init_cfg
        )
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
            velocity = [t.velocity for t in truth] if all("velocity" in t for t in truth) else None
            return self.bbox_head.loss(outputs, [t.boxes for t in truth], [t.labels for t in truth], velocity)
        if mode == "predict":
            return self._predict(outputs, data_samples)
        return outputs

    def _predict(self, outputs: list[dict[str, Tensor]], data_samples: Sequence[BaseDataElement]) -> list[Any]:
        if not all(torch.isfinite(value).all() for output in outputs for value in output.values()):
            raise CheckpointError("the model outputs NaN or infinity; the checkpoint is from a diverged training run")
        for found, sample in zip(self.bbox_head.predict(outputs), data_samples, strict=True):
            values = dict(boxes=found.boxes, scores=found.scores, labels=found.labels)
            if found.velocity is not None:
                values["velocity"] = found.velocity
            sample.set_field(InstanceData(**values), "pred_instances")
        return list(data_samples)
