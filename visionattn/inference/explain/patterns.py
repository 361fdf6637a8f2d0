"""Attention patterns: an autoencoder embeds the attention maps of heads, and k-means groups them.

After Li et al. (arXiv 2303.13731). The map of a head holds a row for each query and a column for each key. It is
reduced to 8x8 queries and keys, so that layers with maps of any size can be compared.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GRID", "Patterns", "find_patterns", "kmeans", "pattern_maps"]

GRID = 8
"""Rows and columns of queries, and of keys, in a pattern."""
CODE = 16
"""Number of channels of the code of a map."""
BATCH = 32
LEARNING_RATE = 1e-2
RESTARTS = 8


@dataclass(frozen=True)
class Patterns:
    """Groups of attention maps.

    Attributes:
        clusters: index of the cluster of each map, int64 ``[N]``; cluster 0 is the largest.
        embedding: the first two principal components of the codes, ``[N, 2]``.
        centers: position of the center of each cluster in the embedding, ``[K, 2]``.
        pictures: mean map of each cluster, ``[K, 64, 64]``.
        explained: share of the variance of the maps that the autoencoder reconstructs.
    """

    clusters: Tensor
    embedding: Tensor
    centers: Tensor
    pictures: Tensor
    explained: float


def pattern_maps(weights: Tensor) -> Tensor:
    """Resize the attention maps of heads to one size.

    Args:
        weights: ``[64, heads, rows, columns]``, of queries spaced evenly on the map, see `spread_places`.

    Returns:
        ``[heads, 64, 64]``: the share of each of 8x8 areas for each query; rows sum to 1.
    """
    areas = F.adaptive_avg_pool2d(weights.float().cpu(), GRID).flatten(2).transpose(0, 1)
    return areas / areas.sum(2, keepdim=True).clamp(min=1e-9)


def find_patterns(maps: Tensor, clusters: int = 6, seed: int = 0, steps: int = 300) -> Patterns:
    """Embed attention maps with a convolutional autoencoder, and group the codes with k-means.

    The autoencoder is given the square roots of the shares, whose distance is the Hellinger distance.

    Args:
        maps: ``[N, 64, 64]``, see `pattern_maps`.
        clusters: number of groups, at most N.
        seed: of the weights, the batches and the first centers.
        steps: number of training steps.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        encoder, decoder = _networks()
        inputs = (len(maps[0]) * maps.clamp(min=0)).sqrt()[:, None]  # 1 for uniform attention
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)
        for _ in range(steps):
            batch = inputs[torch.randint(len(inputs), (min(BATCH, len(inputs)),))]
            loss = F.mse_loss(decoder(encoder(batch)), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            codes = torch.cat([encoder(part) for part in inputs.split(512)])
            pairs = zip(codes.split(512), inputs.split(512), strict=True)
            error = sum(float(F.mse_loss(decoder(code), x, reduction="sum")) for code, x in pairs)
            explained = 1 - error / max(float((inputs - inputs.mean(0)).square().sum()), 1e-9)
    middle = codes.mean(0)
    axes = torch.linalg.eigh((codes - middle).T @ (codes - middle)).eigenvectors[:, -2:].flip(1)
    found, means = kmeans(codes, min(clusters, len(maps)), seed)
    pictures = torch.stack([maps[found == index].mean(0) for index in range(len(means))])
    return Patterns(found, (codes - middle) @ axes, (means - middle) @ axes, pictures, explained)


def kmeans(points: Tensor, clusters: int, seed: int = 0, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """Group points with k-means, started with k-means++; the best of several starts.

    Args:
        points: ``[N, D]``.
        clusters: number of groups, at most N. Fewer are found if points coincide.
        seed: of the starts.
        iterations: most updates of the centers.

    Returns:
        The cluster of each point, int64 ``[N]``, in the order of their size, and the centers ``[clusters, D]``.
    """
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor] | None = None
    for _ in range(RESTARTS):
        centers = points[torch.randint(len(points), (1,), generator=generator)]
        while len(centers) < clusters:
            distance = torch.cdist(points, centers).amin(1) ** 2
            if not distance.any():
                break
            centers = torch.cat([centers, points[torch.multinomial(distance, 1, generator=generator)]])
        for _ in range(iterations):
            found = torch.cdist(points, centers).argmin(1)
            present = found.unique()
            updated = torch.stack([points[found == index].mean(0) for index in present])
            if updated.shape == centers.shape and torch.equal(updated, centers):
                break
            centers = updated
        distance, found = torch.cdist(points, centers).min(1)
        inertia = float(distance.square().sum())
        if best is None or inertia < best[0]:
            best = inertia, found
    numbers, counts = best[1].unique(return_counts=True)
    order = numbers[counts.argsort(descending=True, stable=True)]
    found = (best[1][:, None] == order).int().argmax(1)
    return found, torch.stack([points[found == index].mean(0) for index in range(len(order))])


def _networks() -> tuple[nn.Module, nn.Module]:
    """Return an encoder of ``[B, 1, 64, 64]`` to ``[B, CODE]``, and its decoder."""
    side = GRID * GRID // 8
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * side * side, CODE),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(CODE, 16 * side * side), nn.ReLU(), nn.Unflatten(1, (16, side, side)),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 4, 2, 1),
    )  # fmt: skip
    return encoder, decoder
