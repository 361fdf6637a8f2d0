"""Cases of the attention and convolution functions, each with its gradients."""

import torch

from parity.recipe import Recipe, Result
from visionattn.kernels import (
    bilevel_routing_attention,
    na1d,
    na2d,
    na3d,
    route_regions,
    scattered_linear_attention,
)
from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d, sparse_depthwise_conv3d

NEIGHBORHOOD = {
    "na1d": (na1d, (29,), dict(kernel_size=7)),
    "na1d_dilated_causal": (na1d, (40,), dict(kernel_size=6, dilation=4, is_causal=True)),
    "na1d_strided": (na1d, (37,), dict(kernel_size=8, stride=3)),
    "na2d": (na2d, (13, 17), dict(kernel_size=7)),
    "na2d_dilated": (na2d, (14, 22), dict(kernel_size=(3, 7), dilation=(4, 3))),
    "na2d_strided": (na2d, (12, 15), dict(kernel_size=(5, 6), stride=(2, 6), scale=0.3)),
    "na2d_causal": (na2d, (9, 12), dict(kernel_size=5, dilation=(1, 2), is_causal=(True, False))),
    "na2d_blocked": (na2d, (14, 14), dict(kernel_size=7, stride=7)),
    "na3d": (na3d, (4, 7, 9), dict(kernel_size=(2, 3, 5))),
    "na3d_mixed": (
        na3d,
        (5, 8, 9),
        dict(kernel_size=(3, 4, 3), stride=(1, 2, 1), dilation=(1, 2, 3), is_causal=(True, False, False)),
    ),
}


def _neighborhood(function, size, options):
    def run(recipe: Recipe) -> Result:
        kernel = options["kernel_size"]
        kernel = (kernel,) * len(size) if isinstance(kernel, int) else kernel
        biased = not options.get("is_causal") and all(k % 2 for k in kernel)
        heads, dim = 4, 8
        tensors = {
            "query": recipe.input("query", 2, *size, heads, dim, grad=True),
            "key": recipe.input("key", 2, *size, 2, dim, grad=True),
            "value": recipe.input("value", 2, *size, 2, dim, grad=True),
        }
        if biased:
            tensors["rpb"] = recipe.input("rpb", heads, *(2 * k - 1 for k in kernel), grad=True)
        else:
            tensors["additional_keys"] = recipe.input("additional_keys", 2, 3, 2, dim, grad=True)
            tensors["additional_values"] = recipe.input("additional_values", 2, 3, 2, dim, grad=True)
        outputs = function(**tensors, **options, return_lse=True)
        gradients = recipe.gradients(outputs, list(tensors.values()))
        return {"output": outputs[0], "log-sum-exp": outputs[1], **gradients}

    return run


ROUTING = {
    "routing": dict(size=(14, 21), num_regions=7, topk=4),
    "routing_uneven": dict(size=(13, 10), num_regions=(4, 3), topk=5, scale=0.2),
    "routing_padded": dict(size=(12, 12), num_regions=4, topk=2, masked=0.3),
    "routing_pooled_keys": dict(size=(12, 16), num_regions=4, topk=3, key_size=(4, 8)),
}


def _routing(size, num_regions, topk, scale=None, masked=0.0, key_size=None):
    def run(recipe: Recipe) -> Result:
        heads, dim = 3, 8
        query = recipe.input("query", 2, *size, heads, dim, grad=True)
        key = recipe.input("key", 2, *(key_size or size), heads, dim, grad=True)
        value = recipe.input("value", 2, *(key_size or size), heads, dim, grad=True)
        options = dict(num_regions=num_regions, topk=topk)
        if masked:
            options["padding_mask"] = recipe.mask("padding", masked, 2, *size)
        result = {}
        if key_size:
            order = recipe.positive("routing", 2, num_regions**2, num_regions**2).argsort(-1)
            options["key_regions"] = order[..., :topk].contiguous()
        else:
            index, logits = route_regions(query, key, **options)
            result = {"regions": index.to(recipe.dtype), "logits": logits}
        out = bilevel_routing_attention(query, key, value, **options, scale=scale)
        return {**result, "output": out, **recipe.gradients([out], [query, key, value])}

    return run


def scattered(recipe: Recipe) -> Result:
    """Windows of different sizes, among them an empty one."""
    lengths = [1, 31, 0, 33, 7, 100]
    count = sum(lengths)
    query, key = ((recipe.input(name, count, 4, 16).relu() + 0.1).requires_grad_() for name in ("query", "key"))
    value = recipe.input("value", count, 4, 16, grad=True)
    out = scattered_linear_attention(query, key, value, torch.tensor([0, *lengths]).cumsum(0))
    return {"output": out, **recipe.gradients([out], [query, key, value])}


def sparse(recipe: Recipe) -> Result:
    """A submanifold, a depthwise and a strided convolution of the same voxels."""
    shape = (6, 9, 11)
    coords = recipe.voxels("voxels", 0.25, 2, shape)
    x = recipe.input("features", len(coords), 6, grad=True)
    result = {}
    neighbors = Neighbors.submanifold(coords, shape, 3)
    weight, bias = recipe.input("weight", 5, 3, 3, 3, 6, grad=True), recipe.input("bias", 5, grad=True)
    out = sparse_conv3d(x, weight, neighbors, bias)
    result |= {"submanifold": out}
    result |= {f"submanifold {n}": g for n, g in recipe.gradients([out], [x, weight, bias]).items()}
    neighbors = Neighbors.submanifold(coords, shape, (1, 1, 7))
    weight = recipe.input("depthwise", 1, 1, 7, 6, grad=True)
    out = sparse_depthwise_conv3d(x, weight, neighbors)
    result |= {"depthwise": out}
    result |= {f"depthwise {n}": g for n, g in recipe.gradients([out], [x, weight]).items()}
    neighbors = Neighbors.strided(coords, shape, 3, 2, 1)
    weight = recipe.input("strided", 4, 3, 3, 3, 6, grad=True)
    out = sparse_conv3d(x, weight, neighbors)
    result |= {"strided": out, "strided places": neighbors.coords.to(recipe.dtype)}
    result |= {f"strided {n}": g for n, g in recipe.gradients([out], [x, weight]).items()}
    return result


CASES = {
    **{name: _neighborhood(*case) for name, case in NEIGHBORHOOD.items()},
    **{name: _routing(**case) for name, case in ROUTING.items()},
    "scattered_linear_attention": scattered,
    "sparse_conv": sparse,
}
