"""Layer-wise relevance propagation (LRP): how much each pixel contributes to the score of a class.

Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation" (PLOS
ONE, 2015); for transformers, Ali et al. (arXiv 2202.07304).

The relevance of an activation x is propagated as a factor c with R = x * c. Then each rule is the gradient of a
modified layer: with the z rule, c is the gradient itself. A sum splits the relevance in proportion to its terms, ReLU
and max pooling pass it on, and activations, normalizations and attention are linear maps with fixed coefficients. So a
backward pass of PyTorch through the modified layers is the propagation, in networks of any structure.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, LayerNorm2d
from timm.models.davit import ChannelAttention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visionattn.layers import neighborhood, routing

__all__ = ["PUBLISHED", "RULES", "Relevance", "propagate_relevance", "relevance_heatmap"]

PUBLISHED = {"conv": "z", "linear": "z+"}
"""Rules of convolutions and of linear layers in salient relevance maps (arXiv 1712.08268)."""

RULES = ("z", "z+", "epsilon", "alpha-beta")
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
"""Modules whose classes are activations, except for attention and softmax."""
GATES = ("SqueezeExcite", "SqueezeExciteCl", "SEModule", "EffectiveSEModule", "EcaModule", "SqueezeExcitation")
"""Classes that multiply a map by factors computed from it."""
ADDED = ("bias", "pos_embed", "cls_token", "reg_token", "dist_token")
"""Last parts of the names of parameters that are added to activations, and take part of the relevance."""
TINY = 1e-9


@dataclass(frozen=True)
class Relevance:
    """Relevance of the pixels for the score of a class.

    Attributes:
        map: relevance of each value of the input, ``[B, C, H, W]``.
        logits: output of the network, ``[B, classes]``.
        labels: the class of each image, int64 ``[B]``.
        absorbed: relevance of biases and position embeddings, ``[B]``. With it and `map`, the z rule distributes the
            whole logit.
    """

    map: Tensor
    logits: Tensor
    labels: Tensor
    absorbed: Tensor

    @property
    def conservation(self) -> Tensor:
        """Sum of the relevance of pixels, biases and position embeddings, divided by the logit, ``[B]``."""
        target = self.logits.gather(1, self.labels[:, None])[:, 0]
        return (self.map.flatten(1).sum(1) + self.absorbed) / target


def propagate_relevance(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    rule: str | Mapping[str, str] = "z",
    *,
    epsilon: float = 0.01,
    alpha: float = 2.0,
) -> Relevance:
    """Propagate the logit of one class of each image back to its pixels.

    Rules for a layer with inputs x, weights w, bias b and output z = sum_i x_i w_i + b:

    - ``"z"``: in proportion to x_i w_i; the bias takes its share.
    - ``"z+"``: in proportion to x_i max(w_i, 0), for inputs that are not negative; the bias takes nothing.
    - ``"epsilon"``: as z, with z + epsilon * sign(z) in the denominator, which takes up relevance where z is small.
    - ``"alpha-beta"``: positive contributions share alpha times the relevance, negative ones 1 - alpha times; the bias
      takes nothing. alpha = 1 is the z+ rule for inputs of any sign.

    Batch norms are folded into the preceding convolution. Scaled dot-product, neighborhood and routing attention are
    linear in the values, with fixed attention weights; the factors of squeeze-and-excitation are fixed, too.

    Args:
        model: classifier in eval mode; it is not changed.
        images: ``[B, C, H, W]``, processed one by one.
        labels: int64 ``[B]``; None is the class with the highest logit.
        rule: one of `RULES`, or one for ``"conv"`` and one for ``"linear"``, such as `PUBLISHED`.
        epsilon: of its rule.
        alpha: of the alpha-beta rule, at least 1.

    Raises:
        ValueError: a rule is unknown, `alpha` is below 1, or the output is not ``[B, classes]``.
    """
    rules = {"conv": rule, "linear": rule} if isinstance(rule, str) else dict(rule)
    if set(rules) != {"conv", "linear"} or not set(rules.values()) <= set(RULES):
        raise ValueError(f"`rule` must be one of {RULES}, or a dict with the keys conv and linear, got {rule!r}")
    if alpha < 1:
        raise ValueError(f"`alpha` must be at least 1, got {alpha}")
    net = _folded(model, images[:1])
    _replace_forward(net, rules, epsilon, alpha)
    added = [p.requires_grad_() for name, p in net.named_parameters() if name.rpartition(".")[2] in ADDED]
    maps, logits, chosen, absorbed = [], [], [], []
    with torch.inference_mode(False), torch.enable_grad(), _fixed_attention():
        for index in range(len(images)):
            image = images[index : index + 1].detach().clone().requires_grad_()
            output = net(image)
            if output.dim() != 2:
                raise ValueError(f"the output of `model` must be [B, classes], got shape {list(output.shape)}")
            label = output.argmax(1) if labels is None else labels[index : index + 1].to(output.device)
            found = torch.autograd.grad(output.gather(1, label[:, None]).sum(), [image, *added], allow_unused=True)
            maps.append(image.detach() * found[0])
            shares = [(p.detach() * g).sum() for p, g in zip(added, found[1:], strict=True) if g is not None]
            absorbed.append(torch.stack([output.new_zeros(()), *shares]).sum().detach())
            logits.append(output.detach())
            chosen.append(label)
    return Relevance(torch.cat(maps), torch.cat(logits), torch.cat(chosen), torch.stack(absorbed))


def relevance_heatmap(relevance: Tensor) -> Tensor:
    """Return ``|R|`` scaled to [0, 1] for each image.

    Args:
        relevance: ``[B, C, H, W]``.
    """
    heat = relevance.abs()
    low, high = heat.amin((1, 2, 3), keepdim=True), heat.amax((1, 2, 3), keepdim=True)
    return (heat - low) / (high - low).clamp(min=torch.finfo(heat.dtype).tiny)


@torch.no_grad()
def _folded(model: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy in which batch norms are part of the convolution whose output they take."""
    net = copy.deepcopy(model).eval().requires_grad_(False)
    producers: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            producers[id(output)] = (module, output)  # the tensor is kept, so that its id is not used again
        elif id(inputs[0]) in producers:
            pairs.append((producers[id(inputs[0])][0], module))

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.modules.batchnorm._BatchNorm))]
    handles = [layer.register_forward_hook(remember) for layer in layers]
    net(image)
    for handle in handles:
        handle.remove()
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        norm.forward = nn.Sequential(*after).forward
    return net.requires_grad_(False)


def _like(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a tensor with the values of one tensor and the gradient of another."""
    return surrogate + (value - surrogate).detach()


def _replace_forward(net: nn.Module, rules: Mapping[str, str], epsilon: float, alpha: float) -> None:
    """Replace the forward functions of layers by those whose gradient is the rule."""
    for module in net.modules():
        original = module.forward
        if hasattr(module, "fused_attn"):  # attention of timm, which is then one operator
            module.fused_attn = True
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rule = rules["linear" if isinstance(module, nn.Linear) else "conv"]
            if rule != "z":
                module.forward = _weighted(module, original, rule, epsilon, alpha)
        elif _multiplies(module):
            module.forward = _fixed_factor(original)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.forward = _normalization(module, original)
        elif isinstance(module, ChannelAttention):
            module.forward = _channel_attention(module)


def _multiplies(module: nn.Module) -> bool:
    cls = type(module)
    elementwise = cls.__module__ in ACTIVATIONS and not isinstance(module, (nn.Softmax, nn.MultiheadAttention))
    return elementwise or cls.__name__ in GATES


@contextmanager
def _fixed_attention() -> Iterator[None]:
    """Attention operators without gradients of queries and keys."""
    fused, na2d, route = F.scaled_dot_product_attention, neighborhood._OPS[2], routing.bilevel_routing_attention
    with (
        mock.patch.object(F, "scaled_dot_product_attention", _fixed_weights(fused)),
        mock.patch.dict(neighborhood._OPS, {2: _fixed_weights(na2d)}),
        mock.patch.object(routing, "bilevel_routing_attention", _fixed_weights(route)),
    ):
        yield


def _fixed_weights(operation: Callable[..., Any]) -> Callable[..., Any]:
    def run(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return operation(query.detach(), key.detach(), value, *args, **kwargs)

    return run


def _weighted(
    module: nn.Module, original: Callable[[Tensor], Tensor], rule: str, epsilon: float, alpha: float
) -> Callable[[Tensor], Tensor]:
    weight = module.weight

    def product(x: Tensor, part: Tensor) -> Tensor:
        own = dict(module._parameters)
        module._parameters.update(weight=part, bias=None)
        try:
            return original(x)
        finally:
            module._parameters.update(own)

    def run(x: Tensor) -> Tensor:
        if rule == "epsilon":
            z = original(x)
            return _like(z, z * (z / (z + epsilon * torch.where(z < 0, -1.0, 1.0))).detach())
        with torch.no_grad():
            z = original(x)
        if rule == "z+":
            positive = product(x, weight.clamp(min=0))
            return _like(z, positive * (z / (positive + TINY)).detach())
        above, below = x.clamp(min=0), x.clamp(max=0)
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        positive, negative = product(above, plus) + product(below, minus), product(above, minus) + product(below, plus)
        shares = alpha * positive * (z / (positive + TINY)).detach()
        return _like(z, shares + (1 - alpha) * negative * (z / (negative - TINY)).detach())

    return run


def _fixed_factor(original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Multiply each value by what the function makes of it."""

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = original(x.clone())  # it may work in place
            factor = torch.where(x == 0, 0.0, y / x)
        return _like(y, x * factor)

    return run


def _normalization(module: nn.Module, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Center and scale with a fixed standard deviation."""

    def run(x: Tensor) -> Tensor:
        if isinstance(module, nn.GroupNorm):
            parts = x.unflatten(1, (module.num_groups, -1))
            axes = tuple(range(2, parts.dim()))
        else:
            parts = x
            axes = (1,) if isinstance(module, LayerNorm2d) else tuple(range(-len(module.normalized_shape), 0))
        centered = parts - parts.mean(axes, keepdim=True)
        scale = (parts.var(axes, unbiased=False, keepdim=True) + module.eps).rsqrt().detach()
        y = (centered * scale).reshape(x.shape)
        channels_first = isinstance(module, (nn.GroupNorm, LayerNorm2d))
        shape = (-1, *[1] * (x.dim() - 2)) if channels_first else x.shape[axes[0] :]
        if module.weight is not None:
            y = y * module.weight.view(shape)
        if module.bias is not None:
            y = y + module.bias.view(shape)
        with torch.no_grad():
            value = original(x)
        return _like(value, y)

    return run


def _channel_attention(module: ChannelAttention) -> Callable[[Tensor], Tensor]:
    """Channel attention of DaViT: fixed weights between channels, applied to the queries."""

    def run(x: Tensor) -> Tensor:
        q, k, v = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = ((k * module.scale).mT @ v).softmax(-1).detach()
        return module.proj((weights @ q.mT).mT.transpose(1, 2).flatten(2))

    return run
