"""Detection in point clouds for mmengine's runner: voxels, encoder, sparse backbone, dense neck, centre head."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from visionattn.engine.registry import MODELS
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.lidar.center_head import CenterHead, Decoding
from visionattn.heads.lidar.data.voxelize import Voxels, grid_size, voxelize
from visionattn.heads.lidar.neck import CascadeDED
from visionattn.heads.lidar.targets import BEVGrid
from visionattn.heads.lidar.voxel_encoder import VoxelEncoder

__all__ = ["BEVDetector", "PointDataPreprocessor", "SparseBackbone"]

OFFICIAL = {"vfe": "voxel_encoder", "backbone_3d": "backbone.net", "backbone_2d": "neck", "dense_head": "bbox_head"}
"""Parts of OpenPCDet's detectors, and of this one."""

MODELS.register_module(name="VoxelEncoder", module=VoxelEncoder)
MODELS.register_module(name="CenterHead", module=CenterHead)
MODELS.register_module(name="CascadeDED", module=CascadeDED)


@MODELS.register_module()
class PointDataPreprocessor(BaseDataPreprocessor):
    """Moves points to the model's device and sorts them into voxels there.

    Args:
        point_cloud_range: least x, y, z, then most, in metres.
        voxel_size: x, y, z in metres.
        tanh_columns: columns of the points that are squashed by tanh, such as Waymo's intensity and elongation.
        non_blocking: of the move.

    Raises:
        ConfigError: the range is no whole number of voxels.
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
        """A collated batch, with ``inputs`` ``{"voxels": Voxels}`` in place of points."""
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
    """A backbone of timm's registry that goes from voxels to a map seen from above, such as ``scatterformer_waymo``.

    Args:
        model_name: of the model.
        init_cfg: of mmengine.
        **kwargs: to ``timm.create_model``, such as ``window_size``.

    Raises:
        ConfigError: timm does not know the name or an argument, or the model takes no voxels.
    """

    open_arguments = True

    def __init__(self, model_name: str, init_cfg: dict | list | None = None, **kwargs: Any) -> None:
        super().__init__(init_cfg)
        if not timm.is_model(model_name.split(".", 1)[0]):
            raise ConfigError(f"backbone model_name={model_name!r} is not known to timm; timm.list_models() has names")
        try:
            self.net = timm.create_model(model_name, num_classes=0, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"backbone {model_name}: {' '.join(str(error).split())}") from error
        if not hasattr(self.net, "forward_sparse"):
            raise ConfigError(f"backbone {model_name}: takes pictures, not voxels; such as scatterformer_waymo does")
        self.num_features = [int(self.net.num_features)]

    def init_weights(self) -> None:
        """The model initialised its weights already."""
        self._is_init = True

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Voxels ``[V, C]`` at int64 ``[V, 4]`` (batch, z, y, x) to a map ``[B, C', H, W]``."""
        return self.net.forward_sparse(features, coords, batch_size)


@MODELS.register_module()
class BEVDetector(BaseModel):
    """Boxes in point clouds.

    ``predict`` gives each data sample ``pred_instances``: ``boxes`` ``[N, 7]``, ``scores``, ``labels`` and, from heads
    that know it, ``velocity``.

    Args:
        point_cloud_range: least x, y, z, then most, in metres; data preprocessor, backbone and head take it from here.
        voxel_size: x, y, z in metres; likewise.
        voxel_encoder: points of voxels to features.
        backbone: features of voxels to a map.
        bbox_head: a ``visionattn.CenterHead``; its ``decoding`` takes the fields of
            `visionattn.heads.lidar.center_head.Decoding`.
        neck: on the map, such as a ``visionattn.CascadeDED``.
        data_preprocessor: arguments of `PointDataPreprocessor` besides range and voxels.
        stride: voxels for each cell of the backbone's map.
        init_cfg: of mmengine.

    Raises:
        ConfigError: parts that do not fit.
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
        """The weights of a checkpoint of OpenPCDet under this model's names; others as they are."""
        if not any(name.startswith("dense_head.") for name in weights):
            return weights
        parts = ((name.partition("."), value) for name, value in weights.items() if name != "global_step")
        return {f"{OFFICIAL.get(first, first)}.{rest}": value for (first, _, rest), value in parts}

    def extract(self, voxels: Voxels) -> Tensor:
        """The map that the head works on, ``[B, C, H, W]``."""
        features = self.voxel_encoder(voxels)
        x = self.backbone(features, voxels.coords, voxels.batch_size)
        return x if self.neck is None else self.neck(x)

    def forward(
        self, inputs: dict[str, Any], data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"
    ) -> Any:
        """``"loss"``: a dict of losses; ``"predict"``: the data samples with results; ``"tensor"``: the head's maps."""
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
            raise CheckpointError("the model puts out NaN or infinity; its checkpoint is from a failed run")
        for found, sample in zip(self.bbox_head.predict(outputs), data_samples, strict=True):
            values = dict(boxes=found.boxes, scores=found.scores, labels=found.labels)
            if found.velocity is not None:
                values["velocity"] = found.velocity
            sample.set_field(InstanceData(**values), "pred_instances")
        return list(data_samples)
