"""Attention weights of any backbone, read from one forward pass.

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

__all__ = ["AttentionCall", "intercept_attention", "record_attention", "token_grid"]


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
        return self.maps([(row, column)])[0]

    def maps(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return the attention weights of the queries at several positions, ``[queries, heads, rows, columns]``.

        Each channel of the values serves another query, so a backward pass covers as many queries as there are
        channels.

        Raises:
            ValueError: a position is outside the grid.
        """
        rows, columns = self.grid
        whole = self.padded or self.grid
        for row, column in places:
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(f"query ({row}, {column}) is outside the grid {self.grid} of {self.name}")
        found, channels = [], self.value.shape[-1]
        for start in range(0, len(places), channels):
            part = places[start : start + channels]
            with torch.enable_grad():
                value = self.value.detach().clone().requires_grad_()
                out = self.run(value)  # heads and channels do not mix
                tokens = [self.prefix + row * whole[1] + column for row, column in part]
                (grad,) = torch.autograd.grad(out[:, tokens, range(len(part))].sum(), value)
            found.append(grad[:, self.prefix :, : len(part)].permute(2, 0, 1))
        return torch.cat(found).unflatten(2, whole)[:, :, :rows, :columns]


def record_attention(model: nn.Module, image: Tensor) -> list[AttentionCall]:
    """Run a forward pass on one image and return its attention calls in order.

    Supported are neighborhood attention, bi-level routing attention, and ``scaled_dot_product_attention`` over the
    tokens of a feature map or over its windows, shifted or not, as in the ViT, Swin and DaViT of timm. Channel
    attention and attention over pooled keys are skipped, as their weights form no map.

    Args:
        model: backbone in eval mode.
        image: ``[1, C, H, W]``.

    Raises:
        ValueError: `image` has another shape.
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"`image` must be [1, C, H, W], got shape {list(image.shape)}")
    calls: list[AttentionCall] = []

    def keep(call: AttentionCall, out: Tensor, heads_axis: int) -> Tensor:
        calls.append(call)
        return out

    with torch.no_grad(), intercept_attention(model, image, keep):
        model(image)
    return calls


@contextmanager
def intercept_attention(
    model: nn.Module, image: Tensor, visit: Callable[[AttentionCall, Tensor, int], Tensor]
) -> Iterator[None]:
    """Replace the output of each attention operator by what a function makes of it.

    Args:
        model: backbone in eval mode.
        image: its input, ``[1, C, H, W]``.
        visit: is given the call, its output and the axis of the heads in the output, and returns the new output.
    """
    stack: list[tuple[str, nn.Module, Any]] = []
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    aspect = image.shape[2] / image.shape[3]
    originals = {"na2d": neighborhood._OPS[2], "routing": routing.bilevel_routing_attention}
    fused = F.scaled_dot_product_attention

    def spatial(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            def again(given: Tensor) -> Tensor:
                shaped = given.transpose(0, 1).reshape(1, rows, columns, heads, -1)
                return operation(query, key, shaped, *args, **kwargs)[0].flatten(0, 1).transpose(0, 1)

            out = operation(query, key, value, *args, **kwargs)
            rows, columns, heads = value.shape[1:4]
            flat, given = value[0].flatten(0, 1).transpose(0, 1), stack[-1][2]
            grid = tuple(given[0].shape[1:3]) if given and given[0].dim() == 4 else (rows, columns)
            return visit(AttentionCall(stack[-1][0], heads, grid, again, flat, padded=(rows, columns)), out, 3)

        return run

    def tokens(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = fused(query, key, value, *args, **kwargs)
        same = query.dim() == 4 and query.shape[2] == key.shape[2]
        call = _token_call(stack, query, key, value, args, kwargs, fused, prefix, aspect) if same else None
        return out if call is None else visit(call, out, 1)

    handles, unfused = [], [m for m in model.modules() if getattr(m, "fused_attn", None) is False]
    for module in unfused:  # timm computes the attention of Swin without the operator
        module.fused_attn = True
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
        for module in unfused:
            module.fused_attn = False


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
    windows = _windows(stack, heads * query.shape[3])
    if windows is None or windows[1] != (query.shape[0], query.shape[2]):
        grid = token_grid(query.shape[2] - prefix, aspect) if query.shape[0] == 1 else None
        if grid is None:
            return None
        return AttentionCall(
            name, heads, grid, lambda v: fused(query, key, v[None], *args, **kwargs)[0], value[0], prefix
        )
    grid, _, (height, width), shift = windows
    rows, columns = grid[0] + -grid[0] % height, grid[1] + -grid[1] % width

    def shifted(x: Tensor, sign: int) -> Tensor:
        if not any(shift):
            return x
        x = x.clone()  # padding is added after the shift
        inside = (slice(None), slice(grid[0]), slice(grid[1]))
        x[inside] = x[inside].roll((sign * shift[0], sign * shift[1]), (1, 2))
        return x

    def to_windows(x: Tensor) -> Tensor:
        x = shifted(x.unflatten(1, (rows, columns)), -1)
        x = x.reshape(heads, rows // height, height, columns // width, width, -1)
        return x.permute(1, 3, 0, 2, 4, 5).reshape(query.shape[0], heads, height * width, -1)

    def from_windows(x: Tensor) -> Tensor:
        x = x.reshape(rows // height, columns // width, heads, height, width, -1)
        return shifted(x.permute(2, 0, 3, 1, 4, 5).reshape(heads, rows, columns, -1), 1).flatten(1, 2)

    def again(given: Tensor) -> Tensor:
        return from_windows(fused(query, key, to_windows(given), *args, **kwargs))

    return AttentionCall(name, heads, grid, again, from_windows(value), padded=(rows, columns))


def _windows(stack: Sequence[tuple[str, nn.Module, Any]], channels: int) -> tuple[tuple[int, int], ...] | None:
    """Return what the innermost block with windows does to a map, None if there is no such block.

    Returns:
        The size of the map, the number of windows (with padding) and of tokens in each, the size of the windows, and
        the shift of the map before it is partitioned.
    """
    for _, module, inputs in reversed(stack[:-1]):
        size = getattr(module, "window_size", None)
        if not size or not inputs or inputs[0].dim() != 4:
            continue
        shift = getattr(module, "shift_size", None)  # Swin, whose maps are NHWC
        channels_first = shift is None and inputs[0].shape[1] == channels
        rows, columns = inputs[0].shape[2:] if channels_first else inputs[0].shape[1:3]
        (height, width), shift = ((v, v) if isinstance(v, int) else tuple(v) for v in (size, shift or 0))
        return (rows, columns), (-(-rows // height) * -(-columns // width), height * width), (height, width), shift
    return None


def token_grid(count: int, aspect: float) -> tuple[int, int] | None:
    """Return the (rows, columns) of a number of tokens whose ratio is nearest to `aspect`; None if none is near."""
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    best = min(pairs, key=lambda p: abs(p[0] / p[1] - aspect), default=None)
    return best if best and abs(best[0] / best[1] / aspect - 1) < 0.5 else None
