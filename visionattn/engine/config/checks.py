"""What is wrong with a config, all of it at once, each problem with its dotted path and what is allowed there.

Nothing is trained or read: names and arguments are looked up in the registries, paths on the disk, and the channels
of the model's parts are compared by `visionattn.engine.config.model_checks`. Building the model finds what is left.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry

from visionattn.data.augment import find_problems as pipeline_problems
from visionattn.engine.config.build import registered_names
from visionattn.engine.config.custom_data import SPLITS
from visionattn.engine.config.model_checks import model_problems
from visionattn.engine.config.options import KNOWN, accepted_arguments, close_matches, find_class
from visionattn.errors import ConfigProblemsError, VisionattnError

__all__ = ["check_config", "find_problems"]

# Which registries hold the types below a key of the config; for those of `INNER`, wherever it stands.
REGISTRIES: dict[str, tuple[Registry, ...]] = {
    "model": (root.MODELS, root.TASK_UTILS),
    "tta_model": (root.MODELS,),
    "dataset": (root.DATASETS,),
    "datasets": (root.DATASETS,),
    "pipeline": (root.TRANSFORMS,),
    "sampler": (root.DATA_SAMPLERS,),
    "batch_sampler": (root.DATA_SAMPLERS,),
    "custom_hooks": (root.HOOKS,),
    "default_hooks": (root.HOOKS,),
    "val_evaluator": (root.METRICS, root.EVALUATOR),
    "test_evaluator": (root.METRICS, root.EVALUATOR),
    "train_cfg": (root.LOOPS,),
    "val_cfg": (root.LOOPS,),
    "test_cfg": (root.LOOPS,),
    "optim_wrapper": (root.OPTIM_WRAPPERS,),
    "optimizer": (root.OPTIMIZERS,),
    "param_scheduler": (root.PARAM_SCHEDULERS,),
    "visualizer": (root.VISUALIZERS,),
    "vis_backends": (root.VISBACKENDS,),
    "log_processor": (root.LOG_PROCESSORS,),
}
INNER = ("dataset", "datasets", "pipeline", "sampler", "batch_sampler", "optimizer", "vis_backends")
TOP_KEYS = (
    "model", "custom_hooks", "default_hooks", "optim_wrapper", "param_scheduler", "train_cfg", "val_cfg", "test_cfg",
    "val_evaluator", "test_evaluator", "visualizer", "log_processor",
)  # fmt: skip
DICTS = ("backbone", "roi_head", "dataset", "metainfo", "data_preprocessor")
"""Keys below a model or a loader that are of a dict wherever they stand."""
# What stands deeper in one of these, its class builds by rules of its own.
SHALLOW = ("custom_hooks", "default_hooks", "val_evaluator", "test_evaluator")
# Their types are names of functions or layers that the class around them looks up by itself.
OWN_TYPES = {
    "nms",
    "nms_cfg",
    "roi_layer",
    "init_cfg",
    "collate_fn",
    "clip_grad",
    "bbox_params",
    "adapt_cfg",
    "dqs_cfg",
}
# The class around them takes keys out before it builds the layer.
OWN_ARGUMENTS = ("norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "dcn", "cfg")

# Keys that are read and removed before the class of their dict is built.
TAKEN_OUT = {
    "type", "_scope_", "priority", "constructor", "optimizer", "paramwise_cfg", "convert_to_iter_based",
    "bg_cls_weight", "in_index",
}  # fmt: skip


def check_config(config: Config, splits: tuple[str, ...] = ("train", "val"), name: str | None = None) -> None:
    """Raise one error with every problem of a config, or return.

    Args:
        config: from `load_config`.
        splits: the datasets (``"train"``, ``"val"``, ``"test"``) that will be read.
        name: how messages name the config.

    Raises:
        ConfigProblemsError: its ``problems`` has one line for each.
    """
    problems = find_problems(config, splits)
    if problems:
        raise ConfigProblemsError(name or (Path(config.filename).name if config.filename else "config"), problems)


def find_problems(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """The problems of a config, one line each; see `check_config`."""
    if problems := list(_shape_problems(config)):
        return problems  # what follows looks into these dicts
    scope = config.get("default_scope") or "mmengine"
    loaders = {SPLITS[split]: config[SPLITS[split]] for split in splits if config.get(SPLITS[split])}
    for key in TOP_KEYS:
        if config.get(key):
            problems += _walk(config[key], key, REGISTRIES[key], scope)
    for key, loader in loaders.items():
        problems += [*_unknown_keys(loader, key), *_walk(loader, key, (root.DATASETS,), scope)]
        problems += _missing_paths(loader.get("dataset"), f"{key}.dataset")
        problems += _pair_problems(loader, key)
    if not splits and config.get("test_dataloader"):  # inference takes its pipeline, not its data
        problems += _walk(config["test_dataloader"], "test_dataloader", (root.DATASETS,), scope)
    problems += model_problems(config, loaders, scope)
    return list(dict.fromkeys(problems))


def _shape_problems(config: Config) -> Iterator[str]:
    """Parts that are no dict, and names that are no text."""
    scope = config.get("default_scope")
    if scope is not None and not isinstance(scope, str):
        yield f"default_scope={scope!r} must be a name, such as 'mmdet'"
    for key in ("model", "optim_wrapper", *SPLITS.values()):
        part = config.get(key)
        if part is not None and not isinstance(part, Mapping):
            yield f"{key}={part!r} must be a dict"
        elif part is not None:
            yield from _no_dicts(part, key)


def _no_dicts(node: Any, path: str) -> Iterator[str]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        if key in DICTS and value is not None and not isinstance(value, Mapping):
            yield f"{path}.{key}={value!r} must be a dict"
        elif key == "classes" and path.endswith("metainfo") and not isinstance(value, (str, list, tuple)):
            yield f"{path}.{key}={value!r} must be a list of names"
        elif key == "datasets" and not (isinstance(value, (list, tuple)) and value):
            yield f"{path}.{key}={value!r} must be a list of dicts"
        else:
            yield from _no_dicts(value, f"{path}.{key}")


def _unknown_keys(node: Mapping[str, Any], path: str) -> Iterator[str]:
    """Keys of a dict without ``type`` whose keys are all known."""
    if path in KNOWN:
        for key in node:
            if key not in KNOWN[path]:
                yield f"{path}.{key} is not known{close_matches(key, KNOWN[path])}"


def _walk(node: Any, path: str, kinds: tuple[Registry, ...], scope: str) -> Iterator[str]:
    """Judge each dict with a ``type`` in a part of the config."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _walk(item, f"{path}.{index}", kinds, scope)
    if not isinstance(node, Mapping):
        return
    if "constructor" not in node:  # its own reads other keys
        for key in ("clip_grad", "paramwise_cfg"):
            if isinstance(node.get(key), Mapping):
                yield from _unknown_keys(node[key], f"{path}.{key}")
    cls = None
    if "type" in node and isinstance(node["type"], str):
        cls, problem = _lookup(node["type"], kinds, scope)
        if problem:
            yield f"{path}.type={node['type']!r} {problem}"
    elif "type" in node:
        cls = node["type"]
    if cls is not None and not path.rsplit(".", 1)[-1].endswith(OWN_ARGUMENTS):
        yield from _wrong_arguments(node, path, cls)
    if "type" in node and path.startswith(SHALLOW):
        return
    for key, value in node.items():
        if key == "transforms" and str(node.get("type")).endswith("Albu"):
            if node["type"] == "visionattn.Albu":
                yield from pipeline_problems(value, f"{path}.{key}")
            continue
        if key in OWN_TYPES or key.endswith("_trans"):
            continue
        inner = REGISTRIES[key] if key in INNER and not path.startswith("model") else kinds
        yield from _walk(value, f"{path}.{key}", inner, scope)


def _lookup(name: str, kinds: tuple[Registry, ...], scope: str) -> tuple[Any, str]:
    """The class of a name as a run would find it, or what is wrong."""
    own, dot, _ = name.partition(".")
    names = [name] if dot else [f"{scope}.{name}", name]
    for kind in kinds:
        for candidate in names:
            try:
                found = kind.get(candidate)
            except VisionattnError:  # a module of a job cannot be imported
                raise
            except Exception:  # a registry raises various errors for what it does not know
                found = None
            if found is not None:
                return found, ""
    if dot and own not in ("visionattn", "mmdet", "mmseg", "mmengine", "mmcv", "torch"):
        return None, f"names the package {own!r}, which has no registry here"
    other = find_class(name)
    known = set().union(*(registered_names(kind.name) for kind in kinds))
    what = " or ".join(kind.name for kind in kinds)
    if other is not None and name in known:
        return None, f"is of another package than default_scope={scope!r}; write its package before it, as mmdet.{name}"
    article = "an" if what[0] in "aeiou" else "a"
    if other is not None:
        return None, f"is not {article} {what}, which belongs there{close_matches(name, known)}"
    return None, f"is not known as {article} {what}{close_matches(name, known)}"


def _wrong_arguments(node: Mapping[str, Any], path: str, cls: Any) -> Iterator[str]:
    try:
        accepted = accepted_arguments(cls)
    except (ValueError, TypeError):  # built-in classes tell no signature
        return
    if accepted is None:
        return
    for key in node:
        if key not in accepted and key not in TAKEN_OUT:
            name = getattr(cls, "__name__", str(cls))
            yield f"{path}.{key}: {name} takes no such argument{close_matches(key, accepted)}"


def _pair_problems(loader: Mapping[str, Any], path: str) -> Iterator[str]:
    """Pairs are made by one transform, packed by another and collated by the loader: all three, or none."""
    dataset = loader.get("dataset")
    while isinstance(dataset, Mapping) and isinstance(dataset.get("dataset"), Mapping):
        dataset = dataset["dataset"]  # repeated, for example
    pipeline = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
    steps = [step for step in pipeline if isinstance(step, Mapping)] if isinstance(pipeline, (list, tuple)) else []
    wanted = any(step.get("type") == "visionattn.PackForgeryPair" for step in steps)
    made = any(step.get("type") == "visionattn.ForgeImage" and step.get("paired") for step in steps)
    collate = loader.get("collate_fn")
    collated = isinstance(collate, Mapping) and collate.get("type") == "visionattn.collate_pairs"
    if wanted and not made:
        yield f"{path}.dataset.pipeline: visionattn.PackForgeryPair needs visionattn.ForgeImage with paired=True"
    if wanted != collated:
        yield f"{path}: visionattn.PackForgeryPair and collate_fn=dict(type='visionattn.collate_pairs') go together"


def _missing_paths(dataset: Any, path: str) -> Iterator[str]:
    """Files and folders that a dataset's dict names and that do not exist, inside of wrappers too."""
    if not isinstance(dataset, Mapping):
        return
    for key in ("dataset", "datasets"):
        inner = dataset.get(key)
        if isinstance(inner, Mapping):
            yield from _missing_paths(inner, f"{path}.{key}")
        for index, part in enumerate(inner if isinstance(inner, (list, tuple)) else ()):
            yield from _missing_paths(part, f"{path}.{key}.{index}")
    root_text = str(dataset.get("data_root") or "")
    folder = Path(root_text)
    if root_text and "://" not in root_text and not folder.is_dir():
        yield f"{path}.data_root={root_text!r} is not a folder{_near(folder)}"
        return
    prefix = dataset.get("data_prefix")
    parts = {f"data_prefix.{k}": v for k, v in prefix.items()} if isinstance(prefix, Mapping) else {}
    for key, value in {"ann_file": dataset.get("ann_file"), **parts}.items():
        if isinstance(value, str) and value and "://" not in value and not (folder / value).exists():
            yield f"{path}.{key}: {folder / value} does not exist{_near(folder / value)}"


def _near(path: Path) -> str:
    """Close names in the folder of a path, or the deepest folder above it that exists."""
    above = path.parent
    if above.is_dir():
        return close_matches(path.name, [p.name for p in above.iterdir()])
    while not above.is_dir():
        above = above.parent
    return f"; it exists up to {above}"
