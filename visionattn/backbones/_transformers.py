"""Names of NAT and DiNAT in the library transformers (`NatModel`, `DinatModel`, their classifiers and backbones)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from visionattn.backbones._conversion import Conversion
from visionattn.errors import CheckpointError

__all__ = ["from_transformers"]

_MARKER = re.compile(r"(?:(?:nat|dinat)\.)?encoder\.levels\.\d+\.layers\.\d+\.")
_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.self.rpb": "attn.rpb",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_MODEL = {
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"embeddings\.norm\.": "patch_embed.norm.",
    r"encoder\.levels\.(\d+)\.downsample\.": r"levels.\1.downsample.",
    r"layernorm\.": "norm.",
    r"classifier\.": "head.",
}
_PARTS = ("query", "key", "value")


def _renamed(name: str) -> str:
    """Return the name of a tensor here; a name that is not known is returned unchanged."""
    inner = re.sub(r"^(nat|dinat)\.", "", name)
    if found := re.match(r"encoder\.levels\.(\d+)\.layers\.(\d+)\.", inner):
        rest = inner[found.end() :]
        for theirs, ours in _BLOCK.items():
            if rest == theirs or rest.startswith(f"{theirs}."):
                return f"levels.{found[1]}.blocks.{found[2]}.{ours}{rest[len(theirs) :]}"
        return name
    if found := re.match(r"hidden_states_norms\.stage(\d+)\.", inner):
        return f"norm{int(found[1]) - 1}.{inner[found.end() :]}"
    for pattern, ours in _MODEL.items():
        if re.match(pattern, inner):
            return re.sub(f"^{pattern}", ours, inner)
    return name


def from_transformers(conversion: Conversion) -> None:
    """Convert the names of transformers in place, if the checkpoint has them.

    The projections of queries, keys and values become one, and the two rows of layer scale parameters two vectors.

    Raises:
        CheckpointError: if one of the three projections is missing.
    """
    tensors = conversion.state_dict
    if not any(_MARKER.match(name) for name in tensors):
        return
    for name in list(tensors):
        if found := re.fullmatch(r"(.+)\.attention\.self\.query\.(weight|bias)", name):
            _join(conversion, {part: f"{found[1]}.attention.self.{part}.{found[2]}" for part in _PARTS}, found)
        elif name.endswith(".layer_scale_parameters"):
            _split(conversion, name)
    for name in list(tensors):
        conversion.rename(name, _renamed(name))


def _block_of(name: str) -> str:
    level, block = re.search(r"encoder\.levels\.(\d+)\.layers\.(\d+)", name).groups()
    return f"levels.{level}.blocks.{block}"


def _join(conversion: Conversion, names: Mapping[str, str], found: re.Match[str]) -> None:
    tensors: dict[str, Tensor] = conversion.state_dict
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise CheckpointError(f"the checkpoint has no {missing[0]}")
    target = f"{_block_of(found[1])}.attn.qkv.{found[2]}"
    tensors[target] = torch.cat([tensors.pop(name) for name in names.values()])
    conversion.renamed |= dict.fromkeys(names.values(), target)


def _split(conversion: Conversion, name: str) -> None:
    scales = conversion.state_dict.pop(name)
    for number, scale in enumerate(scales.unbind(), 1):
        target = f"{_block_of(name)}.gamma{number}"
        conversion.state_dict[target] = scale.clone()
        conversion.renamed[name] = target
