"""Rename the weights of Mask2Former heads: from detectron2, and from mmdet 2.x, to mmdet 3.x.

The detectron2 names are those of the authors' code (https://github.com/facebookresearch/Mask2Former), which the
Mask2Former models of DiNAT use as well. The tensors are the same in both: multi-scale features from low to high
resolution, packed query, key and value projections, sampling offsets by head, level and point, and the class of queries
without an object last. Only the order of the classes can differ, see `class_order`.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

__all__ = ["class_order", "head_prefix", "is_detectron2", "rename_detectron2", "rename_mmdet2"]

_DETECTRON2 = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"pixel_decoder\.input_proj\.(\d+)\.0\.", r"pixel_decoder.input_convs.\1.conv."),
        (r"pixel_decoder\.input_proj\.(\d+)\.1\.", r"pixel_decoder.input_convs.\1.gn."),
        (r"pixel_decoder\.transformer\.level_embed$", "pixel_decoder.level_encoding.weight"),
        (
            r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.self_attn\.",
            r"pixel_decoder.encoder.layers.\1.self_attn.",
        ),
        (
            r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm1\.",
            r"pixel_decoder.encoder.layers.\1.norms.0.",
        ),
        (
            r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm2\.",
            r"pixel_decoder.encoder.layers.\1.norms.1.",
        ),
        (
            r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.linear1\.",
            r"pixel_decoder.encoder.layers.\1.ffn.layers.0.0.",
        ),
        (
            r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.linear2\.",
            r"pixel_decoder.encoder.layers.\1.ffn.layers.1.",
        ),
        (r"pixel_decoder\.mask_features\.", "pixel_decoder.mask_feature."),
        (r"predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r"\1.cross_attn.attn."),
        (r"predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.", r"\1.norms.0."),
        (r"predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.", r"\1.self_attn.attn."),
        (r"predictor\.transformer_self_attention_layers\.(\d+)\.norm\.", r"\1.norms.1."),
        (r"predictor\.transformer_ffn_layers\.(\d+)\.linear1\.", r"\1.ffn.layers.0.0."),
        (r"predictor\.transformer_ffn_layers\.(\d+)\.linear2\.", r"\1.ffn.layers.1."),
        (r"predictor\.transformer_ffn_layers\.(\d+)\.norm\.", r"\1.norms.2."),
        (r"predictor\.decoder_norm\.", "transformer_decoder.post_norm."),
        (r"predictor\.(query_feat|static_query)\.", "query_feat."),  # static_query in the first version
        (r"predictor\.(query_embed|level_embed)\.", r"\1."),
        (r"predictor\.input_proj\.(\d+)\.", r"decoder_input_projs.\1."),
        (r"predictor\.class_embed\.", "cls_embed."),
    )
)
_LAYER = re.compile(r"\d+\.(cross_attn|self_attn|norms|ffn)\.")
# Convolutions of the levels that only the FPN uses, numbered from high resolution, with their norms as submodules.
_FPN = re.compile(r"pixel_decoder\.(adapter|layer)_(\d+)\.(norm\.)?(\w+)$")
_MASK = re.compile(r"predictor\.mask_embed\.layers\.(\d+)\.")

# Layers of mmdet 2.x, whose attentions were numbered in the order of the operations.
_MMDET2 = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
        (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
        (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
        (r"((?:pixel_decoder\.encoder|transformer_decoder)\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    )
)

_CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# Positions of the 50 stuff classes among the 150 classes of ADE20K; the others are things.
_ADE20K_STUFF = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
)  # fmt: skip
_ADE20K_THINGS = tuple(n for n in range(150) if n not in _ADE20K_STUFF)


def head_prefix(model: nn.Module) -> str | None:
    """Return the prefix of the Mask2Former head of a model, such as ``"panoptic_head."``, or None if it has none."""
    for name, module in model.named_modules():
        if any(base.__name__ == "Mask2FormerHead" for base in type(module).__mro__):
            return f"{name}." if name else ""
    return None


def is_detectron2(names: Mapping[str, Tensor]) -> bool:
    """Return True for the weights of a Mask2Former of detectron2."""
    return any(name.startswith("sem_seg_head.predictor.") for name in names)


def rename_detectron2(weights: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return the new name of each weight of a detectron2 head; ``""`` for those that the model does not need.

    Args:
        weights: the weights by their names in the checkpoint.
        prefix: prefix of the head in the model.
    """
    renamed = {}
    for name in weights:
        if name in ("criterion.empty_weight", "pixel_mean", "pixel_std"):
            renamed[name] = ""
        elif name.startswith("sem_seg_head."):
            renamed[name] = f"{prefix}{_head_name(name.removeprefix('sem_seg_head.'))}"
    return renamed


def _head_name(name: str) -> str:
    if not name.startswith(("pixel_decoder.", "predictor.")):  # the first version had the pixel decoder at the top
        name = f"pixel_decoder.{name}"
    if found := _FPN.match(name):
        part = "lateral_convs" if found[1] == "adapter" else "output_convs"
        return f"pixel_decoder.{part}.{int(found[2]) - 1}.{'gn' if found[3] else 'conv'}.{found[4]}"
    if found := _MASK.match(name):
        return f"mask_embed.{2 * int(found[1])}.{name[found.end() :]}"  # activations are numbered too
    for pattern, target in _DETECTRON2:
        if pattern.match(name):
            new = pattern.sub(target, name, count=1)
            return f"transformer_decoder.layers.{new}" if _LAYER.match(new) else new
    return name


def rename_mmdet2(weights: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return the new name of each weight of an mmdet 2.x head whose name has changed."""
    renamed = {}
    for name in weights:
        if name.startswith(prefix):
            for pattern, target in _MMDET2:
                new = pattern.sub(target, name, count=1)
                if new != name:
                    renamed[name] = new
                    break
    return renamed


def class_order(classes: Sequence[str], things: int, stuff: int) -> list[int] | None:
    """Return the row of a detectron2 panoptic classifier for each class of mmdet, or None for the same order.

    mmdet numbers the things before the stuff classes. Mask2Former's panoptic models of Cityscapes and ADE20K have the
    order of the datasets; those of COCO have the things first.

    Args:
        classes: class names of the model, by label.
        things, stuff: number of classes of each kind.
    """
    if sorted(classes) == sorted(_CITYSCAPES) and (things, stuff) == (8, 11):
        return [_CITYSCAPES.index(name) for name in classes]
    # the spelling of the names differs between libraries, but things and stuff keep the order of the dataset
    if (things, stuff) == (100, 50) and len(classes) == 150 and classes[0] == "bed" and classes[100] == "wall":
        return [*_ADE20K_THINGS, *_ADE20K_STUFF]
    return None
