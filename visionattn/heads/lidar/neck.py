"""Cascade of dense encoder-decoders on bird's-eye-view features, from HEDNet (NeurIPS 2023), used by ScatterFormer.

A LiDAR measures only the near sides of large objects, so sparse convolutions leave their centers empty; the dense
levels propagate features there. Parameter names match HEDNet's ``CascadeDEDBackbone``.
"""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["CascadeDED"]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions; ``project`` adds a 1x1 convolution to the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.act = nn.ReLU()
        self.downsample_layer = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), _norm(out_channels))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(y + (x if self.downsample_layer is None else self.downsample_layer(x)))


class _Unit(nn.Module):
    """One encoder-decoder; the output has the spatial size of the input."""

    def __init__(self, in_channels: int, channels: int, blocks: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        first = [] if in_channels == channels else [_BasicBlock(in_channels, channels, strides[0], True)]
        first += [_BasicBlock(channels, channels) for _ in range(blocks[0])]
        self.encoder = nn.ModuleList([nn.Sequential(*first)])
        self.decoder, self.decoder_norm = nn.ModuleList(), nn.ModuleList()
        for count, stride in zip(blocks[1:], strides[1:], strict=True):
            level = [_BasicBlock(channels, channels, stride, True)]
            self.encoder.append(nn.Sequential(*level, *(_BasicBlock(channels, channels) for _ in range(count))))
        for stride in reversed(strides[1:]):
            up = nn.ConvTranspose2d(channels, channels, stride, stride, bias=False)
            self.decoder.append(nn.Sequential(up, _norm(channels), nn.ReLU()))
            self.decoder_norm.append(_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for stage in self.encoder:
            x = stage(x)
            levels.append(x)
        for up, norm, level in zip(self.decoder, self.decoder_norm, reversed(levels[:-1]), strict=True):
            rows, columns = level.shape[-2:]
            x = norm(up(x)[..., :rows, :columns] + level)  # odd sizes are upsampled to one more
        return x


class CascadeDED(nn.Module):
    """Sequence of encoder-decoders, for maps of any size.

    Args:
        in_channels: number of input channels.
        channels: channels of all levels and of the output.
        num_units: number of encoder-decoders.
        blocks: residual blocks of each level, not counting the downsampling block of the lower levels.
        strides: downsampling stride of each level; the first must be 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 128,
        channels: int = 128,
        num_units: int = 4,
        blocks: Sequence[int] = (2, 1, 1),
        strides: Sequence[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        if num_units < 1:
            raise ValueError(f"`num_units` must be at least 1, got {num_units}")
        if not blocks or len(blocks) != len(strides):
            raise ValueError(
                f"`blocks` and `strides` must have one number for each level, got {list(blocks)} and {list(strides)}"
            )
        if strides[0] != 1 or min(strides) < 1:
            raise ValueError(f"`strides` must start with 1 and be at least 1, got {list(strides)}")
        self.num_features = channels
        self.layers = nn.ModuleList(
            _Unit(in_channels if index == 0 else channels, channels, blocks, strides) for index in range(num_units)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, channels, H, W]``."""
        for layer in self.layers:
            x = layer(x)
        return x
