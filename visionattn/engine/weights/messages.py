"""Messages about checkpoints that do not fit a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visionattn.backbones._conversion import OUT_NORM
from visionattn.backbones._weights import describe
from visionattn.engine.weights.convert import Converted
from visionattn.errors import CheckpointError, MismatchError

__all__ = ["Difference", "class_error", "mismatch_error"]

LENGTH = 400
"""Characters of a message, without the path; longer ones have fewer examples."""

# Parameter names that tell the heads of models apart, in order of priority.
_HEADS = (
    ("Cascade Mask R-CNN", r"roi_head\.mask_head\.0\."),
    ("Cascade R-CNN", r"roi_head\.bbox_head\.0\."),
    ("Mask R-CNN", r"roi_head\.mask_head\."),
    ("Faster R-CNN", r"roi_head\.bbox_head\."),
    ("RetinaNet", r"bbox_head\.retina_cls\."),
    ("ATSS", r"bbox_head\.atss_cls\."),
    ("DINO", r"dn_query_generator\."),
    ("Mask2Former of detectron2", r"sem_seg_head\.predictor\."),
    ("Mask2Former", r"(panoptic_head|decode_head)\.pixel_decoder\."),
    ("UPerNet", r"decode_head\.psp_modules\."),
    ("Semantic FPN", r"decode_head\.scale_heads\."),
)


@dataclass(frozen=True)
class Difference:
    """A tensor that a model and a checkpoint do not have in common.

    Attributes:
        name: name in the model, or the name that the checkpoint's entry would have in it.
        own: shape in the model, or None if it has no such tensor.
        given: shape in the checkpoint, or None.
        source: name in the checkpoint.
    """

    name: str
    own: tuple[int, ...] | None
    given: tuple[int, ...] | None
    source: str

    @property
    def resized(self) -> bool:
        """Both have the tensor, with different shapes."""
        return self.own is not None and self.given is not None

    def __str__(self) -> str:
        if self.given is None:
            return f"{self.name} is missing from the file"
        if self.own is None:
            return f"{self.source} is in the file but not in the model"
        return f"{self.name} is {list(self.given)} in the file and {list(self.own)} in the model"


def part_of(name: str) -> str:
    """Return the part of a model that a parameter belongs to: ``"backbone"``, ``"neck"``, ``"head"``, ..."""
    for step in name.split("."):
        if step in ("backbone", "net") or step.startswith("backbone"):
            return "backbone"
        if "neck" in step:
            return "neck"
        if "head" in step:
            return "head"
    return "model"


def mismatch_error(
    path: str,
    own: Mapping[str, Tensor],
    differences: Sequence[Difference],
    found: Converted,
    meta: Any,
    finetune: bool,
) -> MismatchError:
    """Return the error for a checkpoint that fits a model only in part."""
    total: dict[str, int] = {}
    for name in own:
        total[part_of(name)] = total.get(part_of(name), 0) + 1
    by_part: dict[str, list[Difference]] = {}
    for difference in differences:
        by_part.setdefault(part_of(difference.name), []).append(difference)
    seems = _family(found)
    advice = _advice(own, differences, found) or (
        f"{origin(meta)}{'; or set `partial` to load only what matches' if finetune else ''}"
    )
    for examples, family in ((2, seems), (1, seems), (2, _short(seems)), (1, _short(seems)), (0, _short(seems))):
        texts = []
        for part, group in by_part.items():
            kinds = [[d for d in group if d.own is not None], [d for d in group if d.own is None]]
            counts = [f"{len(kinds[0])} of {total[part]} tensors do not match"] if kinds[0] else []
            counts += [f"{len(kinds[1])} in the file are unknown"] if kinds[1] else []
            quoted = [d for kind in kinds for d in kind[:examples]] if examples else [d for d in group[:1] if not texts]
            shown = f" ({'; '.join(map(str, quoted))})" if quoted else ""
            texts.append(f"{part}: {' and '.join(counts)}{shown}")
        text = f"{path}: does not fit the model: {', '.join(texts)}"
        text += f". The file seems to be of {family}" if family else ""
        if len(text) + len(advice) - len(path) <= LENGTH:
            break
    return MismatchError(text, advice)


def _short(family: str) -> str:
    return family.split(" (", 1)[0]


def _family(found: Converted) -> str:
    """Describe the models that a checkpoint seems to belong to, by the names of its tensors."""
    original = {new: old for old, new in found.renamed.items()}
    names = {original.get(name, name): tensor for name, tensor in found.weights.items()}
    heads = next((head for head, pattern in _HEADS if any(re.search(pattern, name) for name in names)), None)
    try:
        backbone = describe(names) if names else ""
    except CheckpointError:
        backbone = ""
    if backbone.startswith("an unknown model") and heads:
        backbone = "an unknown backbone"
    return " with ".join(text for text in (heads, backbone) if text)


def _advice(own: Mapping[str, Tensor], differences: Sequence[Difference], found: Converted) -> str:
    """Return what to do with the file of a backbone or classifier, or an empty string for other files."""
    if not _is_backbone(found) or all(part_of(name) == "backbone" for name in own):
        return ""
    differing = [d for d in differences if part_of(d.name) == "backbone"]
    if any(d.given or not OUT_NORM.fullmatch(d.name.split("backbone.", 1)[-1]) for d in differing):
        return "It has only a backbone, which is not that of the model"
    return (
        "It has only a backbone, which model.backbone.pretrained=FILE loads, as does "
        "`visionattn train CONFIG --from FILE`"
    )


def _is_backbone(found: Converted) -> bool:
    """Return True for a file without necks and heads, other than a classifier."""
    if all(part_of(name) == "backbone" for name in found.weights):
        return True
    originals = {new: old for old, new in found.renamed.items()}
    names = {originals.get(name, name): tensor for name, tensor in found.weights.items()}
    if any("backbone." in name for name in names):
        return False
    try:
        return not describe(names).startswith("an unknown model")
    except CheckpointError:
        return False


def class_error(
    path: str, differences: Sequence[Difference], classes: tuple[int, int] | None, meta: Any
) -> MismatchError:
    """Return the error for a checkpoint whose class layers have another size than those of the model."""
    names = list(dict.fromkeys(d.name.rsplit(".", 1)[0] for d in differences))
    counts = f"{classes[0]} classes, and the model has {classes[1]}" if classes else "another number of classes"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return MismatchError(
        f"{path}: does not fit the model: the file has {counts} ({differences[0]}; class layers: "
        f"{', '.join(names[:3])}{more})",
        f"{origin(meta)}, or set load_from to this file to train new class layers",
    )


def origin(meta: Any) -> str:
    """Return a sentence with the config and the classes that a checkpoint was saved with."""
    meta = meta if isinstance(meta, Mapping) else {}
    about = meta.get("dataset_meta")
    classes = about.get("classes") if isinstance(about, Mapping) else None
    classes = list(classes) if isinstance(classes, (list, tuple)) else []
    known = []
    if meta.get("config_name"):
        known.append(f"by the config {meta['config_name']}")
    if classes:
        shown = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
        known.append(f"for the {len(classes)} classes {shown}")
    if known:
        return f"It was saved {' '.join(known)}; use the config that it was trained with"
    return "Use the config that it was trained with"
