"""What a model's attention looks at: weights of a query, how far heads look, which heads matter.

The output of attention is linear in its values, so its weights are the derivative of an output by the values: whatever
kernel computes it, neighborhood, routing or global, they are read off without forming the matrix of all pairs.
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
    """One attention of a forward pass over one picture.

    Attributes:
        name: of the module, such as ``"levels.0.blocks.1.attn"``.
        heads: number of heads.
        grid: (rows, columns) of the map of queries and keys.
        run: values ``[heads, tokens, dim]`` to outputs of the same shape.
        value: the values of the pass.
        prefix: tokens before the map, such as a class token.
        padded: (rows, columns) of the map that the attention worked on, where that was filled up at the bottom and
            right; None if it was not.
    """

    name: str
    heads: int
    grid: tuple[int, int]
    run: Callable[[Tensor], Tensor]
    value: Tensor
    prefix: int = 0
    padded: tuple[int, int] | None = None

    def weights(self, row: int, column: int) -> Tensor:
        """Of each head, what the query at a place of the grid attends to: ``[heads, rows, columns]``.

        They add up to 1 over the map, its padding, and the tokens before it.
        """
        rows, columns = self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"the query ({row}, {column}) is outside of the grid {self.grid} of {self.name}")
        whole = self.padded or self.grid
        with torch.enable_grad():
            value = self.value[..., :1].detach().clone().requires_grad_()
            full = torch.cat([value, self.value[..., 1:].detach()], -1)
            out = self.run(full)[:, self.prefix + row * whole[1] + column, 0].sum()  # heads do not mix
            (found,) = torch.autograd.grad(out, value)
        return found[:, self.prefix :, 0].reshape(self.heads, *whole)[:, :rows, :columns]


def record_attention(model: nn.Module, image: Tensor) -> list[AttentionCall]:
    """The attentions of a forward pass over one picture, in order.

    Neighborhood and bi-level routing attention, and PyTorch's fused attention over the tokens of a map or over windows
    of one, as timm's ViTs and DaViT call it. Attention between channels and over pooled keys is passed over: it has no
    map of weights.

    Args:
        model: in eval mode.
        image: ``[1, C, H, W]``.

    Raises:
        ValueError: ``image`` is not one picture.
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"image has shape {tuple(image.shape)}; it must be [1, C, H, W]")
    calls: list[AttentionCall] = []
    with torch.no_grad(), _intercepted(model, image, calls, None):
        model(image)
    return calls


@contextmanager
def _intercepted(
    model: nn.Module, image: Tensor, calls: list[AttentionCall] | None, pruned: tuple[int, int] | None
) -> Iterator[None]:
    """Within, attentions are recorded in ``calls``, or the output of (call, head) ``pruned`` is set to zero."""
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
    """Size of the map, of the padded map, and of its windows, from the block that cuts it, ``[B, C, H, W]``."""
    for _, module, inputs in reversed(stack[:-1]):
        size = getattr(module, "window_size", None)
        if size is None or not inputs or inputs[0].dim() != 4:
            continue
        height, width = (size, size) if isinstance(size, int) else size
        rows, columns = inputs[0].shape[2:]
        return (rows, columns), (rows + -rows % height, columns + -columns % width), (height, width)
    return None


def _factors(count: int, aspect: float) -> tuple[int, int] | None:
    """Rows and columns of so many tokens whose ratio is nearest to that of the picture."""
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    best = min(pairs, key=lambda p: abs(p[0] / p[1] - aspect), default=None)
    return best if best and abs(best[0] / best[1] / aspect - 1) < 0.5 else None


def mean_distance(call: AttentionCall, image_size: tuple[int, int], queries: int = 16) -> Tensor:
    """Mean attention distance of each head, ``[heads]`` in pixels of the picture (Dosovitskiy et al., ViT, app. D.7).

    Args:
        call: an attention.
        image_size: (height, width) of the picture that went in.
        queries: how many, spread over the map.
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
    """For each attention ``[heads]``: what the picture loses when one head's output is set to zero.

    With a classifier it is the fall of the probability of the top class; without one, the relative change of the
    features. It takes a forward pass for each head.
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
    """Where the picture speaks for a class: LayerCAM (Jiang et al., IEEE TIP 2021) over all levels, ``[H, W]`` in 0..1.

    Args:
        model: of timm, whose ``feature_info`` names the levels; without a classifier the size of its features is
            explained.
        image: ``[1, C, H, W]``.
        label: the class; None takes the top one.
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
    """Features as ``[1, C, h, w]``, from that, from channels last, or from tokens; None if they are no map."""
    if x.dim() == 4:
        return x if x.shape[1] == channels else x.permute(0, 3, 1, 2) if x.shape[3] == channels else None
    if x.dim() != 3 or x.shape[2] != channels:
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    grid = _factors(x.shape[1] - prefix, image.shape[2] / image.shape[3])
    return None if grid is None else x[:, prefix:].transpose(1, 2).unflatten(2, grid)
