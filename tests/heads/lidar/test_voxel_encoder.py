"""Points of a voxel to its features."""

import pytest
import torch

from visionattn.heads.lidar.data.voxelize import voxelize
from visionattn.heads.lidar.voxel_encoder import VoxelEncoder

RANGE, SIZE = (-4.0, -2.0, -1.0, 4.0, 2.0, 1.0), (0.5, 0.5, 0.5)


def by_definition(encoder: VoxelEncoder, points: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    """Voxel by voxel, in plain loops."""
    low, size = torch.tensor(RANGE[:3]), torch.tensor(SIZE)
    cells: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for point in points:
        cells.setdefault(tuple(((point[:3] - low) / size).floor().long().tolist()), []).append(point)
    out = {}
    for cell, members in cells.items():
        inside = torch.stack(members)
        centre = (torch.tensor(cell) + 0.5) * size + low
        x = torch.cat([inside, inside[:, :3] - inside[:, :3].mean(0), inside[:, :3] - centre], 1)
        first, second = encoder.pfn_layers
        x = first.norm(first.linear(x)).relu()
        x = torch.cat([x, x.amax(0).expand_as(x)], 1)
        out[cell[::-1]] = second.norm(second.linear(x)).relu().amax(0)
    return out


def test_voxel_by_voxel():
    torch.manual_seed(0)
    encoder = VoxelEncoder(4, 16, point_cloud_range=RANGE, voxel_size=SIZE).eval()
    for layer in encoder.pfn_layers:
        torch.nn.init.normal_(layer.norm.running_mean)
    points = torch.rand(300, 4) * torch.tensor([8.0, 4, 2, 1]) + torch.tensor([-4.0, -2, -1, 0])
    voxels = voxelize(points, RANGE, SIZE)
    out, expected = encoder(voxels), by_definition(encoder, points)
    assert out.shape == (len(expected), 16)
    for row, place in zip(out, voxels.coords[:, 1:].tolist(), strict=True):
        torch.testing.assert_close(row, expected[tuple(place)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_trains_with_few_points(count):
    torch.manual_seed(0)
    encoder = VoxelEncoder(5, 8, point_cloud_range=RANGE, voxel_size=SIZE).train()
    voxels = voxelize([torch.rand(count, 5), torch.zeros(0, 5)], RANGE, SIZE)
    out = encoder(voxels)
    assert out.shape == (len(voxels.coords), 8)
    out.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_official_names():
    encoder = VoxelEncoder(5, point_cloud_range=RANGE, voxel_size=SIZE)
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items() if "linear" in k}
    assert shapes == {"pfn_layers.0.linear.weight": (32, 11), "pfn_layers.1.linear.weight": (64, 64)}


def test_wrong_points():
    encoder = VoxelEncoder(5, 8, point_cloud_range=RANGE, voxel_size=SIZE)
    with pytest.raises(ValueError, match="must have 5 columns, got 4"):
        encoder(voxelize(torch.rand(3, 4), RANGE, SIZE))
    with pytest.raises(ValueError, match="`channels` even and at least 2, got 5 and 7"):
        VoxelEncoder(5, 7, point_cloud_range=RANGE, voxel_size=SIZE)
