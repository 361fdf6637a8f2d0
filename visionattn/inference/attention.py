"""Attention maps, mean attention distance, head importance and class activation maps of backbones.

The output of attention is linear in its values, so the attention weights of a query are the derivative of its output
with respect to the values. This works for every kernel (neighborhood, routing, global) and does not form the matrix of
all pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.layers import neighborhood, routing

__all__ = ["AttentionCall", "class_relevance", "head_importance", "mean_distance", "record_attention"]


@dataclass
class AttentionCall:
    """One call of an attention operator in a forward pass over one image.

    Attributes:
        name: name of the module, such as ``"levels.0.blocks.1.attn"``.
        heads: number of heads.
        grid: (rows, columns) of the feature map of queries and keys.
        run: computes the outputs for values ``[heads, tokens, dim]``, of the same shape.
        value: values of the forward pass ``[heads, tokens, dim]``.
        prefix: number of tokens before those of the map, such as a class token.
        padded: (rows, columns) of the feature map including padding at the bottom and right; None if there is none.
    """

    name: str
    heads: int
    grid: tuple[int, int]
    run: Callable[[Tensor], Tensor]
    value: Tensor
    prefix: int = 0
    padded: tuple[int, int] | None = None

    def weights(self, row: int, column: int) -> Tensor:
        """Return the attention weights of the query at a position of the grid, ``[heads, rows, columns]``.

        The weights of a head sum to 1 over the map, its padding and the prefix tokens.

        Raises:
            ValueError: the position is outside the grid.
        """
        rows, columns = self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"query ({row}, {column}) is outside the grid {self.grid} of {self.name}")
        whole = self.padded or self.grid
        with torch.enable_grad():
            value = self.value[..., :1].detach().clone().requires_grad_()
            full = torch.cat([value, self.value[..., 1:].detach()], -1)
            out = self.run(full)[:, self.prefix + row * whole[1] + column, 0].sum()  # heads do not mix
            (found,) = torch.autograd.grad(out, value)
        return found[:, self.prefix :, 0].reshape(self.heads, *whole)[:, :rows, :columns]


def record_attention(model: nn.Module, image: Tensor) -> list[AttentionCall]:
    """Run a forward pass on one image and return its attention calls in order.

    Supported are neighborhood attention, bi-level routing attention, and ``scaled_dot_product_attention`` over the
    tokens of a feature map or over its windows, as in the ViTs and DaViT of timm. Channel attention and attention over
    pooled keys are skipped, as their weights form no map.

    Args:
        model: backbone in eval mode.
        image: ``[1, C, H, W]``.

    Raises:
        ValueError: `image` has another shape.
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"`image` must be [1, C, H, W], got shape {list(image.shape)}")
    calls: list[AttentionCall] = []
    with torch.no_grad(), _intercepted(model, image, calls, None):
        model(image)
    return calls


@contextmanager
def _intercepted(
    model: nn.Module, image: Tensor, calls: list[AttentionCall] | None, pruned: tuple[int, int] | None
) -> Iterator[None]:
    """Intercept attention calls: append them to ``calls``, or set the output of (call, head) ``pruned`` to zero."""
    stack: list[tuple[str, nn.Module, Any]] = []
    count = [0]
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    aspect = image.shape[2] / image.shape[3]
    originals = {"na2d": neighborhood._OPS[2], "routing": routing.bilevel_routing_attention}
    fused = F.scaled_dot_product_attention

    def finish(out: Tensor, call: AttentionCall | None, heads_axis: int) -> Tensor:
        if call is None:
            return out
        index, count[0] = count[0], count[0] + 1
        if calls is not None:
            calls.append(call)
        if pruned is not None and pruned[0] == index:
            out = out.clone()
            out.select(heads_axis, pruned[1]).zero_()
        return out

    def spatial(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            def again(given: Tensor) -> Tensor:
                shaped = given.transpose(0, 1).reshape(1, rows, columns, heads, -1)
                return operation(query, key, shaped, *args, **kwargs)[0].flatten(0, 1).transpose(0, 1)

            out = operation(query, key, value, *args, **kwargs)
            rows, columns, heads = value.shape[1:4]
            flat, given = value[0].flatten(0, 1).transpose(0, 1), stack[-1][2]
            grid = tuple(given[0].shape[1:3]) if given and given[0].dim() == 4 else (rows, columns)
            call = AttentionCall(stack[-1][0], heads, grid, again, flat, padded=(rows, columns))
            return finish(out, call, 3)

        return run

    def tokens(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = fused(query, key, value, *args, **kwargs)
        same = query.dim() == 4 and query.shape[2] == key.shape[2]
        call = _token_call(stack, query, key, value, args, kwargs, fused, prefix, aspect) if same else None
        return finish(out, call, 1)

    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, inputs, name=name: stack.append((name, m, inputs)) and None)
        )
        handles.append(module.register_forward_hook(lambda m, inputs, output: stack.pop() and None))
    try:
        with (
            mock.patch.dict(neighborhood._OPS, {2: spatial(originals["na2d"])}),
            mock.patch.object(routing, "bilevel_routing_attention", spatial(originals["routing"])),
            mock.patch.object(F, "scaled_dot_product_attention", tokens),
        ):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _token_call(
    stack: Sequence[tuple[str, nn.Module, Any]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    args: tuple,
    kwargs: dict[str, Any],
    fused: Callable[..., Tensor],
    prefix: int,
    aspect: float,
) -> AttentionCall | None:
    name, heads = stack[-1][0], query.shape[1]
    if "Channel" in type(stack[-1][1]).__name__:
        return None
    windows = _windows(stack) if query.shape[0] > 1 else None
    if query.shape[0] > 1 and windows is None:
        return None
    if windows is None:
        grid = _factors(query.shape[2] - prefix, aspect)
        if grid is None:
            return None
        return AttentionCall(
            name, heads, grid, lambda v: fused(query, key, v[None], *args, **kwargs)[0], value[0], prefix
        )
    real, (rows, columns), (height, width) = windows
    if rows * columns // (height * width) != query.shape[0]:
        return None

    def to_windows(x: Tensor) -> Tensor:
        x = x.reshape(heads, rows // height, height, columns // width, width, -1)
        return x.permute(1, 3, 0, 2, 4, 5).reshape(query.shape[0], heads, height * width, -1)

    def from_windows(x: Tensor) -> Tensor:
        x = x.reshape(rows // height, columns // width, heads, height, width, -1)
        return x.permute(2, 0, 3, 1, 4, 5).reshape(heads, rows * columns, -1)

    def again(given: Tensor) -> Tensor:
        return from_windows(fused(query, key, to_windows(given), *args, **kwargs))

    return AttentionCall(name, heads, real, again, from_windows(value), padded=(rows, columns))


def _windows(stack: Sequence[tuple[str, nn.Module, Any]]) -> tuple[tuple[int, int], ...] | None:
    """Return the sizes of the map, the padded map and its windows, from the block that partitions ``[B, C, H, W]``."""
    for _, module, inputs in reversed(stack[:-1]):
        size = getattr(module, "window_size", None)
        if size is None or not inputs or inputs[0].dim() != 4:
            continue
        height, width = (size, size) if isinstance(size, int) else size
        rows, columns = inputs[0].shape[2:]
        return (rows, columns), (rows + -rows % height, columns + -columns % width), (height, width)
    return None


def _factors(count: int, aspect: float) -> tuple[int, int] | None:
    """Return the (rows, columns) of a number of tokens whose ratio is nearest to `aspect`; None if none is near."""
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    best = min(pairs, key=lambda p: abs(p[0] / p[1] - aspect), default=None)
    return best if best and abs(best[0] / best[1] / aspect - 1) < 0.5 else None


def mean_distance(call: AttentionCall, image_size: tuple[int, int], queries: int = 16) -> Tensor:
    """Return the mean attention distance of each head (ViT, arXiv 2010.11929, appendix D.7).

    Args:
        call: an attention call.
        image_size: (height, width) of the input image in pixels.
        queries: approximate number of queries to average over, spaced evenly on the map.

    Returns:
        Distances in pixels of the input image, ``[heads]``.
    """
    rows, columns = call.grid
    y = (torch.arange(rows) + 0.5) * image_size[0] / rows
    x = (torch.arange(columns) + 0.5) * image_size[1] / columns
    side = max(1, round(queries**0.5))
    places = [(int((i + 0.5) * rows / side), int((j + 0.5) * columns / side)) for i in range(side) for j in range(side)]
    total = torch.zeros(call.heads)
    for row, column in places:
        weights = call.weights(row, column).float().cpu()
        far = ((y[:, None] - y[row]) ** 2 + (x[None, :] - x[column]) ** 2).sqrt()
        total += (weights * far).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-9)
    return total / len(places)


def head_importance(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the effect of setting the output of a single head to zero, ``[heads]`` for each attention call.

    For classifiers the effect is the decrease of the probability of the top class, otherwise the relative change of
    the features. Each head takes one forward pass.

    Args:
        model: backbone in eval mode.
        image: ``[1, C, H, W]``.
    """
    calls = record_attention(model, image)
    with torch.no_grad():
        before = model(image)
        top = int(before.flatten().argmax())
        found = []
        for index, call in enumerate(calls):
            scores = torch.zeros(call.heads)
            for head in range(call.heads):
                with _intercepted(model, image, None, (index, head)):
                    after = model(image)
                if getattr(model, "num_classes", 0):
                    scores[head] = (before.softmax(-1) - after.softmax(-1)).flatten()[top]
                else:
                    scores[head] = (after - before).norm() / before.norm().clamp(min=1e-9)
            found.append(scores)
    return found


def class_relevance(model: nn.Module, image: Tensor, label: int | None = None) -> Tensor:
    """Return the class activation map of LayerCAM (Jiang et al., IEEE TIP 2021), summed over all levels.

    Args:
        model: timm model with ``feature_info``. Without a classifier, the gradient of the squared norm of the features
            is used.
        image: ``[1, C, H, W]``.
        label: class index; None is the top class.

    Returns:
        ``[H, W]`` in [0, 1].
    """
    found: list[tuple[Tensor, int]] = []

    def keep(channels: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(output, Tensor) and output.requires_grad:
                found.append((output, channels))

        return hook

    modules = dict(model.named_modules())
    levels = [info for info in model.feature_info if info["module"] in modules]
    handles = [modules[info["module"]].register_forward_hook(keep(info["num_chs"])) for info in levels]
    try:
        with torch.enable_grad():
            out = model(image.detach().clone().requires_grad_())
            classified = bool(getattr(model, "num_classes", 0))
            score = out[0, int(out[0].argmax()) if label is None else label] if classified else out.square().sum()
            grads = torch.autograd.grad(score, [tensor for tensor, _ in found], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    total = torch.zeros(image.shape[2:])
    for (level, channels), grad in zip(found, grads, strict=True):
        product = None if grad is None else _as_map((grad.relu() * level).detach(), channels, model, image)
        if product is None:
            continue
        cam = product.sum(1, keepdim=True).relu().float().cpu()
        cam = F.interpolate(cam / cam.amax().clamp(min=1e-9), image.shape[2:], mode="bilinear", align_corners=False)
        total += cam[0, 0]
    return total / total.amax().clamp(min=1e-9)


def _as_map(x: Tensor, channels: int, model: nn.Module, image: Tensor) -> Tensor | None:
    """Convert NCHW, NHWC or token features to ``[1, C, h, w]``; return None if they do not form a map."""
    if x.dim() == 4:
        return x if x.shape[1] == channels else x.permute(0, 3, 1, 2) if x.shape[3] == channels else None
    if x.dim() != 3 or x.shape[2] != channels:
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    grid = _factors(x.shape[1] - prefix, image.shape[2] / image.shape[3])
    return None if grid is None else x[:, prefix:].transpose(1, 2).unflatten(2, grid)
