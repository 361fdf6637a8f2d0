"""Super-resolution models for mmengine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor

from visionattn.engine.registry import MODELS
from visionattn.errors import ConfigError
from visionattn.heads.super_resolution import mmlab_data, mmlab_metric  # noqa: F401  (registered with this module)
from visionattn.heads.super_resolution.backbone_net import BackboneUpscaler
from visionattn.heads.super_resolution.catanet import CATANet

__all__ = ["SuperResolver"]

PREPROCESSOR = {"type": "ImgDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3, "bgr_to_rgb": True}


@MODELS.register_module()
class SuperResolver(BaseModel):
    """Super-resolution with CATANet, or with a backbone as feature extractor; trained with the L1 loss.

    Data samples are those of `visionattn.heads.super_resolution.mmlab_data.PackSRInputs`. Prediction sets
    ``pred_image``, RGB float ``[3, scale * H, scale * W]``, in [0, 1] but not clipped.

    Args:
        scale: factor of the enlargement, 1 to 4.
        net: further arguments of `visionattn.heads.super_resolution.catanet.CATANet`, or with ``backbone`` of
            `visionattn.heads.super_resolution.backbone_net.BackboneUpscaler`.
        backbone: config of the backbone, such as ``dict(type="visionattn.Backbone", model_name="dinat_mini")``; None
            is CATANet.
        data_preprocessor: config of the data preprocessor; None is RGB in [0, 1].
        init_cfg: see ``mmengine.model.BaseModule``.

    Attributes:
        net: the network, from RGB in [0, 1] ``[B, 3, H, W]`` to the enlarged image.

    Raises:
        ConfigError: an argument is out of range.
    """

    job = "super_resolution"

    def __init__(
        self,
        scale: int = 4,
        net: dict | None = None,
        backbone: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(PREPROCESSOR), init_cfg)
        built = None if backbone is None else ROOT_MODELS.build(backbone)
        try:
            if built is None:
                self.net = CATANet(scale, **(net or {}))
            else:
                self.net = BackboneUpscaler(built, built.num_features, built.strides, scale, **(net or {}))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.net: {error}") from error
        self.scale = scale

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = "tensor") -> Any:
        """Run the model.

        Args:
            inputs: RGB images in [0, 1], ``[B, 3, H, W]``.
            data_samples: one data sample per image; needed for ``"loss"`` and ``"predict"``.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            A dict of losses, the data samples with predictions, or enlarged images ``[B, 3, scale * H, scale * W]``.
        """
        enlarged = self.net(inputs)
        if mode == "loss":
            truth = torch.stack([sample.gt_image for sample in data_samples]).to(enlarged) / 255
            return {"loss_l1": F.l1_loss(enlarged, truth)}
        if mode == "predict":
            for sample, image in zip(data_samples, enlarged, strict=True):
                sample.set_field(image, "pred_image")
            return list(data_samples)
        return enlarged

    def own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a released file of CATANet under the names of this model; others are unchanged."""
        if not isinstance(self.net, CATANet) or any(name.startswith("net.") for name in weights):
            return dict(weights)
        return {f"net.{name}": tensor for name, tensor in weights.items()}
