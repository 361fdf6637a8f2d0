"""Blocks of timm's window models that give their attention the whole map."""

from timm.models.davit import SpatialBlock
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

__all__ = ["WholeMapSpatialBlock", "WholeMapSwinBlock"]


class WholeMapSwinBlock(SwinTransformerBlock):
    """timm's Swin block without windows; an existing block becomes one by its class."""

    def _attn(self, x: Tensor) -> Tensor:
        return self.attn(x.flatten(1, 2), size=(x.shape[1], x.shape[2])).view(x.shape)

    def set_input_size(
        self, feat_size: tuple[int, int], window_size: tuple[int, int], always_partition: bool | None = None
    ) -> None:
        """The attention takes maps of any size; there is nothing to set but the size itself."""
        self.input_resolution = feat_size

    def _init_buffers(self) -> None:
        """There is no mask to compute."""


class WholeMapSpatialBlock(SpatialBlock):
    """timm's spatial block of DaViT without windows; an existing block becomes one by its class."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        shape = x.shape
        x = self.cpe1(x).flatten(2).transpose(1, 2)
        x = x + self.drop_path1(self.attn(self.norm1(x), size=(shape[2], shape[3])))
        x = self.cpe2(x.transpose(1, 2).reshape(shape))
        if self.mlp is not None:
            x = x.flatten(2).transpose(1, 2)
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
            x = x.transpose(1, 2).reshape(shape)
        return x
