"""Check that channels, levels and classes of the parts of a model config match each other and the data."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from visionattn.engine.config.build import building, drop_initialisation, quiet
from visionattn.engine.config.custom_data import UNTOUCHED_HEADS
from visionattn.engine.config.options import find_class
from visionattn.errors import ConfigError

__all__ = ["backbone_channels", "build_on_meta", "class_counts", "model_problems"]

PYRAMIDS = {"FPN", "PAFPN", "NASFPN", "CSPNeXtPAFPN", "YOLOXPAFPN", "ChannelMapper", "MultiLevelNeck"}
"""Necks with ``out_channels`` channels in each of their ``num_outs`` outputs (default: the number of inputs)."""


def model_problems(config: Config, loaders: Mapping[str, Any], scope: str) -> list[str]:
    """Return one line for each mismatch between parts of the model, or between a head and the dataset.

    Args:
        config: the config.
        loaders: configs of the dataloaders by their keys.
        scope: default scope of the config.
    """
    model = config["model"]
    problems = list(_class_problems(model, loaders, scope))
    if not isinstance(model.get("backbone"), Mapping):
        return problems
    try:
        channels = backbone_channels(model["backbone"], scope)
    except ConfigError as error:
        text = str(error)
        if "is not known" in text and "model_name" not in text:  # an unknown type, which is reported elsewhere
            return problems
        return [*problems, text]
    if channels is not None:
        problems += _channel_problems(model, channels)
    return problems


def backbone_channels(backbone: Mapping[str, Any], scope: str = "mmdet") -> list[int] | None:
    """Return the number of channels of each feature map of a backbone, or None if it is unknown.

    The backbone is built on the meta device, so that no memory is allocated and no weights are loaded.

    Args:
        backbone: config of the backbone.
        scope: default scope of the config.

    Raises:
        ConfigError: the backbone cannot be built because of an unknown model, level or argument.
    """
    part = deepcopy(dict(backbone))
    drop_initialisation(part)
    with quiet(), building("model.backbone"), DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        try:
            built = MODELS.build(part)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"model.backbone: {' '.join(str(error).split()) or 'invalid arguments'}") from error
        except (NotImplementedError, RuntimeError):  # the constructor computes with weights, which meta tensors lack
            return None
        if hasattr(built, "num_features") and isinstance(built.num_features, list):
            return list(built.num_features)
        try:
            with torch.no_grad():
                maps = built.eval()(torch.zeros(1, int(part.get("in_channels", 3)), 128, 128))
        except Exception:  # not all code runs on the meta device; errors are then found by the real build
            return None
    return [int(m.shape[1]) for m in maps] if isinstance(maps, (list, tuple)) else None


def build_on_meta(config: Config, name: str) -> None:
    """Build the whole model on the meta device to find arguments that its classes reject.

    Args:
        config: the config.
        name: name of the config in error messages.

    Raises:
        ConfigError: the model cannot be built.
    """
    part = deepcopy(config["model"])
    drop_initialisation(part)
    scope = config.get("default_scope", "mmengine")
    with quiet(), building(name), DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        try:
            MODELS.build(part)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"{name}: {' '.join(str(error).split()) or 'the model cannot be built'}") from error
        except (NotImplementedError, RuntimeError):  # the constructor computes with weights, which meta tensors lack
            return


def _channel_problems(model: Mapping[str, Any], channels: list[int]) -> Iterator[str]:
    neck, where = model.get("neck"), "model.backbone has"
    if isinstance(neck, Mapping):
        given = neck.get("in_channels")
        if isinstance(given, (list, tuple)) and list(given) != channels:
            yield f"model.neck.in_channels={list(given)}, but {where} {channels}"
        kind = str(neck.get("type")).rsplit(".", 1)[-1]
        out = neck.get("out_channels")
        if kind not in PYRAMIDS or not isinstance(out, int):
            return
        levels = neck.get("num_outs", len(channels))
        channels, where = [out] * (levels if isinstance(levels, int) else len(channels)), "model.neck has"
    elif neck is not None:
        return
    for key in ("rpn_head", "bbox_head", "mask_head", "panoptic_head", "decode_head", "auxiliary_head"):
        heads = model.get(key)
        for index, head in enumerate(heads if isinstance(heads, (list, tuple)) else [heads]):
            path = f"model.{key}.{index}" if isinstance(heads, (list, tuple)) else f"model.{key}"
            if isinstance(head, Mapping):
                yield from _head_problems(head, path, channels, where)
    roi_head = model.get("roi_head")
    extractor = roi_head.get("bbox_roi_extractor") if isinstance(neck, Mapping) and roi_head else None
    if isinstance(extractor, Mapping):
        out, strides = extractor.get("out_channels"), extractor.get("featmap_strides")
        path = "model.roi_head.bbox_roi_extractor"
        if isinstance(out, int) and channels and out != channels[0]:
            yield f"{path}.out_channels={out}, but {where} {channels[0]}"
        if isinstance(strides, (list, tuple)) and len(strides) > len(channels):
            yield f"{path}.featmap_strides has {len(strides)} levels, but {where} {len(channels)}"


def _head_problems(head: Mapping[str, Any], path: str, channels: list[int], where: str) -> Iterator[str]:
    given, index = head.get("in_channels"), head.get("in_index")
    picks = path.startswith(("model.decode", "model.auxiliary")) and "num_queries" not in head  # mmseg
    if index is not None or picks:
        indices = [-1 if index is None else index] if not isinstance(index, (list, tuple)) else list(index)
        outside = [i for i in indices if not isinstance(i, int) or not -len(channels) <= i < len(channels)]
        if outside:
            yield f"{path}.in_index={index} must be in 0..{len(channels) - 1}: {where} {len(channels)} maps"
            return
        expected: Any = [channels[i] for i in indices]
        if isinstance(given, int):
            expected = expected[0] if len(expected) == 1 else expected
        if given is not None and (list(given) if isinstance(given, (list, tuple)) else given) != expected:
            yield f"{path}.in_channels={given}, but {where} {expected} at in_index={index if index is not None else -1}"
    elif isinstance(given, int) and len(set(channels)) == 1 and given != channels[0]:
        yield f"{path}.in_channels={given}, but {where} {channels[0]}"
    elif isinstance(given, (list, tuple)) and list(given) != channels:
        yield f"{path}.in_channels={list(given)}, but {where} {channels}"


def _class_problems(model: Mapping[str, Any], loaders: Mapping[str, Any], scope: str) -> Iterator[str]:
    """Yield the heads whose number of classes differs from that of the dataset."""
    if any(key in model for key in ("language_model", "semi_train_cfg", "detector")):
        return
    for loader, content in loaders.items():
        info = _dataset_info(content.get("dataset"), scope)
        names, counts = _dataset_classes(info)
        if not counts:
            continue
        yield from _query_problems(model, info, loader)
        for path, count in _num_classes(model, "model"):
            if isinstance(count, int) and count not in counts:
                listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                allowed = " or ".join(str(c) for c in sorted(counts))
                yield f"{path}={count}, but the dataset of {loader} has {allowed} classes ({listed})"
        return  # `check_data` compares the other datasets with the classes


def _query_problems(model: Mapping[str, Any], info: Mapping[str, Any], loader: str) -> Iterator[str]:
    """Yield the Mask2Former heads whose numbers of things, stuff or class weights differ from the dataset."""
    classes = len(info["classes"])
    things = len(info.get("thing_classes") or info["classes"])
    for part in ("panoptic_head", "panoptic_fusion_head", "decode_head"):
        head = model.get(part)
        if not isinstance(head, Mapping):
            continue
        for key, count in (("num_things_classes", things), ("num_stuff_classes", classes - things)):
            if head.get(key, count) != count:
                group = "things" if key == "num_things_classes" else "stuffs"
                yield f"model.{part}.{key}={head[key]}, but the dataset of {loader} has {count} {group}"
        loss = head.get("loss_cls") if "num_queries" in head else None
        weights = loss.get("class_weight") if isinstance(loss, Mapping) else None
        if isinstance(weights, (list, tuple)) and len(weights) != classes + 1:
            yield (
                f"model.{part}.loss_cls.class_weight has {len(weights)} values, but the dataset of {loader} has "
                f"{classes} classes; it needs one for each and one for queries without an object"
            )


def _dataset_info(dataset: Any, scope: str) -> dict[str, Any]:
    """Return the metainfo of a dataset, from its config and its class; empty if there is none."""
    while isinstance(dataset, Mapping) and not (dataset.get("metainfo") or {}).get("classes"):
        inner = dataset.get("dataset") or (dataset.get("datasets") or [None])[0]
        if inner is None:
            break
        dataset = inner
    if not isinstance(dataset, Mapping):
        return {}
    kind = dataset.get("type")
    own = getattr(find_class(kind, scope), "METAINFO", {}) or {}
    info = {**own, **(dataset.get("metainfo") or {})}
    classes = info.get("classes") or ()
    info["classes"] = [classes] if isinstance(classes, str) else [str(c) for c in classes]
    return info


def _dataset_classes(info: Mapping[str, Any]) -> tuple[list[str], set[int]]:
    """Return the class names, and the numbers of classes that a head for them can have."""
    names = list(info.get("classes") or ())
    counts = {len(names)} - {0}
    for key in ("thing_classes", "stuff_classes"):  # panoptic models have heads for each of them
        group: Sequence[str] = info.get(key) or ()
        counts |= {len(group)} - {0}
    return names, counts


def class_counts(model: Mapping[str, Any]) -> set[int]:
    """Return the numbers of classes that the heads of a model have."""
    counts = {count for _, count in _num_classes({**model, "backbone": None}, "model")}
    for head in (part for part in model.values() if isinstance(part, Mapping) and "num_things_classes" in part):
        things, stuff = head["num_things_classes"], head.get("num_stuff_classes") or 0
        counts |= {things, things + stuff}
    return {count for count in counts if isinstance(count, int) and count > 0}


def _num_classes(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Mapping):
        if str(part.get("type")).endswith("STDCHead"):  # predicts edges, not classes
            return
        for key, value in part.items():
            if key == "num_classes":
                yield f"{path}.{key}", value
            elif key not in (*UNTOUCHED_HEADS, "train_cfg", "test_cfg", "neck", "semantic_head"):
                yield from _num_classes(value, f"{path}.{key}")
    elif isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            yield from _num_classes(item, f"{path}.{index}")
