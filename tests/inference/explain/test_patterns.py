"""Attention patterns: maps of known patterns, and k-means."""

import torch

from visionattn.inference.explain.patterns import find_patterns, kmeans, pattern_maps
from visionattn.inference.explain.rings import spread_places


def constructed(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy maps of heads that attend to the query, to its surroundings, to everything and to one place."""
    torch.manual_seed(0)
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    distance = torch.cdist(places, places)
    column = torch.zeros(64, 64)
    column[:, 20] = 1
    sorts = [torch.eye(64), torch.exp(-(distance**2) / 3), torch.ones(64, 64), column]
    truth = torch.arange(count) % 4
    maps = torch.stack([sorts[index] for index in truth])
    maps = maps / maps.sum(2, keepdim=True) + 0.01 * torch.rand(count, 64, 64)
    return maps / maps.sum(2, keepdim=True), truth


def test_constructed_patterns_are_separated():
    maps, truth = constructed(120)
    state = torch.get_rng_state()
    found = find_patterns(maps, clusters=4, seed=1, steps=100)
    assert torch.equal(torch.get_rng_state(), state)
    groups = [found.clusters[truth == index].unique() for index in range(4)]
    assert [len(group) for group in groups] == [1, 1, 1, 1]
    assert len(torch.cat(groups).unique()) == 4
    assert found.embedding.shape == (120, 2)
    for index in range(4):
        chosen = truth == index
        torch.testing.assert_close(found.pictures[groups[index].item()], maps[chosen].mean(0))
        center = found.centers[groups[index].item()]
        torch.testing.assert_close(found.embedding[chosen].mean(0), center, rtol=1e-3, atol=1e-3)
    assert 0.6 < found.explained < 1
    again = find_patterns(maps, clusters=4, seed=1, steps=100)
    assert torch.equal(again.clusters, found.clusters)
    assert torch.equal(again.embedding, found.embedding)


def test_maps_are_reduced():
    places = spread_places((16, 16), 8)
    weights = torch.zeros(64, 1, 16, 16)
    for query, (row, column) in enumerate(places):
        weights[query, 0, row, column] = 0.5
    torch.testing.assert_close(pattern_maps(weights), torch.eye(64)[None])
    small = pattern_maps(torch.rand(64, 3, 5, 7))
    assert small.shape == (3, 64, 64)
    torch.testing.assert_close(small.sum(2), torch.ones(3, 64))


def test_kmeans():
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    sizes = torch.tensor([20, 40, 30])
    truth = torch.arange(3).repeat_interleave(sizes)
    points = middles[truth] + 0.3 * torch.randn(90, 2)
    found, centers = kmeans(points, 3)
    assert found.bincount().tolist() == [40, 30, 20]
    torch.testing.assert_close(centers, torch.stack([points[truth == index].mean(0) for index in (1, 2, 0)]))
    found, centers = kmeans(torch.ones(5, 2), 3)  # equal points make one cluster
    assert found.tolist() == [0] * 5
    assert centers.tolist() == [[1.0, 1.0]]
