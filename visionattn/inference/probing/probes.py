"""Classifiers on frozen features: linear probe, k nearest neighbors, and efficient probing.

The linear probe and efficient probing are trained alike, with the protocol of Psomas et al. (arXiv 2506.10178), which
is that of masked autoencoders (He et al., arXiv 2111.06377, appendix A.1): LARS without weight decay, a learning rate
of 0.1 times batch size / 256 with 10 epochs of warm-up and cosine decay, 90 epochs, and batch norm without scale and
shift before the linear layer. On small datasets this takes too few and too small steps, so the number of steps has a
lower bound, and the learning rate can be chosen on held-out training images.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from visionattn.layers import EfficientProbing

__all__ = ["Protocol", "efficient_probe", "linear_probe", "neighbor_scores", "probe_scores", "train_probe"]


RATES = (0.1, 1.0, 10.0)
SHORT = 0.2
"""Length of the runs that choose the learning rate, relative to the whole."""


@dataclass(frozen=True)
class Protocol:
    """Training of a probe.

    Attributes:
        epochs: number of epochs.
        warmup_epochs: epochs of linear warm-up.
        base_lr: learning rate for a batch of 256; None chooses the best of `RATES` in short runs on three quarters of
            the training images.
        batch_size: images per step; small sets are one batch.
        min_steps: the number of epochs is raised so that there are at least this many steps; warm-up in proportion.
        seed: of the initialization and the order of images.
    """

    epochs: int = 90
    warmup_epochs: float = 10
    base_lr: float | None = None
    batch_size: int = 1024
    min_steps: int = 1000
    seed: int = 0


def linear_probe(channels: int, classes: int) -> nn.Module:
    """Return batch norm and a linear layer for pooled features ``[B, C]``."""
    return nn.Sequential(nn.BatchNorm1d(channels, affine=False, eps=1e-6), _classifier(channels, classes))


def efficient_probe(channels: int, classes: int, queries: int = 32, d_out: int = 1) -> nn.Module:
    """Return efficient probing, batch norm and a linear layer for tokens ``[B, T, C]``.

    Args:
        channels: channels of the tokens.
        classes: number of classes.
        queries: number of queries; the largest divisor of ``channels / d_out`` up to this number is used.
        d_out: reduction factor of the channels.
    """
    pooling = EfficientProbing(channels, _divisor(channels // d_out, queries), d_out)
    norm = nn.BatchNorm1d(pooling.out_dim, affine=False, eps=1e-6)
    return nn.Sequential(pooling, norm, _classifier(pooling.out_dim, classes))


def _classifier(channels: int, classes: int) -> nn.Linear:
    layer = nn.Linear(channels, classes)
    nn.init.trunc_normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def train_probe(
    make: Callable[[], nn.Module],
    features: np.ndarray,
    labels: np.ndarray,
    protocol: Protocol = Protocol(),
    progress: Callable[[float], Any] = lambda fraction: None,
) -> nn.Module:
    """Train a probe on features ``[N, K, ...]`` of K views of each image; each epoch takes one view of each.

    Args:
        make: creates the probe.
        features: float16, possibly mapped from a file.
        labels: int64 ``[N]``.
        protocol: see `Protocol`.
        progress: called with the fraction that is done.

    Returns:
        The probe in eval mode.
    """
    if protocol.base_lr is None:
        protocol = dataclasses.replace(protocol, base_lr=_best_rate(make, features, labels, protocol))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(protocol.seed)
        probe = make().train()
    generator = np.random.default_rng(protocol.seed)
    count, views = features.shape[:2]
    batch = min(protocol.batch_size, count)
    per_epoch = -(-count // batch)
    epochs = max(protocol.epochs, -(-protocol.min_steps // per_epoch))
    warmup = protocol.warmup_epochs * epochs / protocol.epochs
    optimizer = Lars(probe.parameters(), lr=0.0, momentum=0.9, weight_decay=0.0)
    targets = torch.from_numpy(labels)
    for epoch in range(epochs):
        order = generator.permutation(count)
        chosen = generator.integers(views, size=count)
        for start in range(0, count, batch):
            rows = np.sort(order[start : start + batch])
            if len(rows) < 2:  # of which batch norm cannot compute a deviation
                continue
            position = epoch + start / count
            rate = position / warmup if position < warmup else _cosine(position, warmup, epochs)
            for group in optimizer.param_groups:
                group["lr"] = protocol.base_lr * batch / 256 * rate
            x = torch.from_numpy(features[rows, chosen[rows]]).float()
            loss = F.cross_entropy(probe(x), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress((epoch + 1) / epochs)
    return probe.eval()


def _best_rate(make: Callable[[], nn.Module], features: np.ndarray, labels: np.ndarray, protocol: Protocol) -> float:
    """Return the learning rate with the best accuracy on a quarter of the training images."""
    order = np.random.default_rng(protocol.seed).permutation(len(labels))
    held, kept = np.sort(order[: len(order) // 4]), np.sort(order[len(order) // 4 :])
    if len(held) == 0:
        return RATES[0]
    epochs, steps = max(1, round(SHORT * protocol.epochs)), round(SHORT * protocol.min_steps)
    warmup = protocol.warmup_epochs * epochs / protocol.epochs
    train, test, targets = features[kept], features[held][:, 0], torch.from_numpy(labels[held])
    accuracy = {}
    for rate in RATES:
        short = dataclasses.replace(protocol, epochs=epochs, warmup_epochs=warmup, min_steps=steps, base_lr=rate)
        scores = probe_scores(train_probe(make, train, labels[kept], short), test)
        accuracy[rate] = (scores.argmax(1) == targets).float().mean().item()
    return max(accuracy, key=accuracy.__getitem__)


def _cosine(position: float, start: float, end: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * (position - start) / max(end - start, 1e-9)))


@torch.inference_mode()
def probe_scores(probe: nn.Module, features: np.ndarray, batch_size: int = 256) -> Tensor:
    """Return the class scores ``[N, classes]`` of features ``[N, ...]``."""
    parts = [features[start : start + batch_size] for start in range(0, len(features), batch_size)]
    return torch.cat([probe(torch.from_numpy(np.array(part)).float()) for part in parts])


@torch.inference_mode()
def neighbor_scores(
    train: np.ndarray, labels: Sequence[int] | np.ndarray, test: np.ndarray, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return class scores ``[M, classes]`` by the k most similar training images.

    The votes have the weight exp(cosine / temperature) (Wu et al., arXiv 1805.01978; Caron et al., arXiv 2104.14294).

    Args:
        train: pooled features ``[N, C]``.
        labels: their classes ``[N]``.
        test: pooled features ``[M, C]``.
        k: number of neighbors.
        temperature: see above.
    """
    bank = F.normalize(torch.from_numpy(np.asarray(train)).float(), dim=1)
    targets = torch.as_tensor(np.asarray(labels))
    queries = F.normalize(torch.from_numpy(np.asarray(test)).float(), dim=1)
    scores = queries.new_zeros(len(queries), int(targets.max()) + 1)
    for start in range(0, len(queries), 1024):
        similar, index = (queries[start : start + 1024] @ bank.T).topk(min(k, len(bank)), dim=1)
        scores[start : start + 1024].scatter_add_(1, targets[index], (similar / temperature).exp())
    return scores
