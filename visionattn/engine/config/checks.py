"""Find all problems of a config at once, each with its dotted path and the allowed values.

Type names and arguments are looked up in the registries, paths are looked up on the disk, and the channels of the
parts of the model are compared by `visionattn.engine.config.model_checks`. No data is read and no weights are loaded.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from visionattn.data.augment import find_problems as pipeline_problems
from visionattn.engine.config.build import registered_names
from visionattn.engine.config.class_names import dataset_classes
from visionattn.engine.config.custom_data import SPLITS, coco_datasets
from visionattn.engine.config.model_checks import model_problems
from visionattn.engine.config.options import FREE, KNOWN, accepted_arguments, close_matches, find_class
from visionattn.engine.config.values import text_problems
from visionattn.errors import ConfigProblemsError, VisionattnError

__all__ = ["check_config", "find_problems", "loader_check", "pipeline_steps"]

# The registries of the types below each key of a config. The keys in `INNER` are recognized at any depth.
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
"""Keys below a model or a dataloader whose values must be dicts, at any depth."""
# The classes of these parts build nested parts in their own way.
SHALLOW = ("custom_hooks", "default_hooks", "val_evaluator", "test_evaluator")
# The types below these keys name functions or layers that the class looks up itself.
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
# The class removes some keys from these before it builds the layer.
OWN_ARGUMENTS = ("norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "dcn", "cfg")

# Keys that are read and removed before the class is built.
TAKEN_OUT = {
    "type", "_scope_", "priority", "constructor", "optimizer", "paramwise_cfg", "convert_to_iter_based",
    "bg_cls_weight", "in_index",
}  # fmt: skip


def check_config(config: Config, splits: tuple[str, ...] = ("train", "val"), name: str | None = None) -> None:
    """Raise an error that lists all problems of a config.

    Args:
        config: as returned by `visionattn.engine.config.load.load_config`.
        splits: the splits whose dataloaders will be used: ``"train"``, ``"val"``, ``"test"``.
        name: name of the config in error messages; by default that of its file.

    Raises:
        ConfigProblemsError: the config has problems; ``problems`` has one line for each.
    """
    problems = find_problems(config, splits)
    if problems:
        raise ConfigProblemsError(name or (Path(config.filename).name if config.filename else "config"), problems)


def find_problems(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """Return the problems of a config, one line each; see `check_config`."""
    if problems := list(_shape_problems(config)):
        return problems  # the other checks require these types
    scope = config.get("default_scope") or "mmengine"
    loaders = {SPLITS[split]: config[SPLITS[split]] for split in splits if config.get(SPLITS[split])}
    for key in TOP_KEYS:
        if config.get(key):
            problems += _walk(config[key], key, REGISTRIES[key], scope)
    for key in ("randomness", "auto_scale_lr"):
        problems += text_problems(config.get(key) or {}, key, None)
    for key, loader in loaders.items():
        problems += [*_unknown_keys(loader, key), *_walk(loader, key, (root.DATASETS,), scope)]
        problems += _missing_paths(loader.get("dataset"), f"{key}.dataset")
        for check in _loader_checks:
            problems += check(loader, key)
    if not splits and config.get("test_dataloader"):  # inference uses its pipeline but not its data
        problems += _walk(config["test_dataloader"], "test_dataloader", (root.DATASETS,), scope)
    problems += model_problems(config, loaders, scope)
    problems += _other_classes(loaders, scope)
    return list(dict.fromkeys(problems))


def _other_classes(loaders: Mapping[str, Any], scope: str) -> Iterator[str]:
    """Yield the dataloaders whose classes differ from those of the training data: predictions have the labels of it."""
    found = {}
    for key, loader in loaders.items():
        dataset = next(coco_datasets(loader.get("dataset"), any_file=True), None)
        if dataset is not None and (classes := dataset_classes(dataset, scope)):
            found[key] = classes
    trained = found.pop(SPLITS["train"], None)
    for key, classes in found.items():
        if trained is not None and classes != trained:
            how = "lists its classes in another order" if sorted(classes) == sorted(trained) else "has other classes"
            yield f"{key}.dataset {how} than {SPLITS['train']}: {classes[:6]} and {trained[:6]}"


_LoaderCheck = Callable[[Mapping[str, Any], str], Iterator[str]]
_loader_checks: list[_LoaderCheck] = []


def loader_check(check: _LoaderCheck) -> _LoaderCheck:
    """Decorate a function that checks dataloaders, so that `find_problems` calls it.

    The ``mmlab`` module of a job adds checks in this way. They run on every config that names a type of this package.

    Args:
        check: takes a dataloader config and its dotted path, and yields one line per problem.
    """
    _loader_checks.append(check)
    return check


def pipeline_steps(loader: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the transforms of a dataloader config, inside dataset wrappers and transforms such as RandomChoice too."""
    dataset = loader.get("dataset")
    while isinstance(dataset, Mapping) and isinstance(dataset.get("dataset"), Mapping):
        dataset = dataset["dataset"]
    pipeline = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
    return list(_transforms(pipeline))


def _transforms(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the transforms in a pipeline, each before those inside of it (mmcv: RandomChoice, RandomApply, ...)."""
    for step in pipeline if isinstance(pipeline, (list, tuple)) else ():
        if isinstance(step, Mapping):
            yield step
            if not str(step.get("type")).endswith("Albu"):  # which contains transforms of albumentations
                yield from _transforms(step.get("transforms"))
        else:
            yield from _transforms(step)


def _shape_problems(config: Config) -> Iterator[str]:
    """Yield the parts and names that have the wrong Python type."""
    scope = config.get("default_scope")
    if scope is not None and not isinstance(scope, str):
        yield f"default_scope={scope!r} must be a string, such as 'mmdet'"
    for key in ("model", "optim_wrapper", "train_cfg", "randomness", "auto_scale_lr", "env_cfg", *SPLITS.values()):
        part = config.get(key)
        if part is not None and not isinstance(part, Mapping):
            yield f"{key}={part!r} must be a dict; options set its entries, as in {key}.NAME=VALUE"
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
    """Yield the unknown keys of a dict that has a fixed set of keys."""
    if path in KNOWN:
        for key in node:
            if key not in KNOWN[path]:
                yield f"{path}.{key} is not known{close_matches(key, KNOWN[path])}"


def _walk(node: Any, path: str, kinds: tuple[Registry, ...], scope: str) -> Iterator[str]:
    """Yield the problems of every dict with a ``type`` in a part of the config."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _walk(item, f"{path}.{index}", kinds, scope)
    if not isinstance(node, Mapping):
        return
    if "constructor" not in node:  # constructors define further keys
        for key in ("clip_grad", "paramwise_cfg"):
            if isinstance(node.get(key), Mapping):
                yield from _unknown_keys(node[key], f"{path}.{key}")
    cls, scope = None, node.get("_scope_") or scope
    if "type" in node and isinstance(node["type"], str):
        cls, problem = _lookup(node["type"], kinds, scope)
        if problem:
            yield f"{path}.type={node['type']!r} {problem}"
    elif "type" in node:
        cls = node["type"]
    if cls is not None and not path.rsplit(".", 1)[-1].endswith(OWN_ARGUMENTS):
        yield from _wrong_arguments(node, path, cls)
    name = path.rsplit(".", 1)[-1]
    yield from text_problems(node, path, DataLoader if path in SPLITS.values() else cls, name in FREE)
    if "type" in node and path.startswith(SHALLOW):
        return
    for key, value in node.items():
        if key == "transforms" and str(node.get("type")).endswith("Albu"):
            if node["type"] == "visionattn.Albu":
                yield from pipeline_problems(value, f"{path}.{key}")
            continue
        if key in OWN_TYPES or key in getattr(cls, "own_types", ()) or key.endswith("_trans"):
            yield from text_problems(value, f"{path}.{key}", None) if isinstance(value, Mapping) else ()
            continue
        inner = REGISTRIES[key] if key in INNER and not path.startswith("model") else kinds
        yield from _walk(value, f"{path}.{key}", inner, scope)


def _lookup(name: str, kinds: tuple[Registry, ...], scope: str) -> tuple[Any, str]:
    """Return the class that a run would use for a type name, or None and the problem."""
    own, dot, _ = name.partition(".")
    names = [name] if dot else [f"{scope}.{name}", name]
    for kind in kinds:
        for candidate in names:
            try:
                found = kind.get(candidate)
            except VisionattnError:  # a module of a job cannot be imported
                raise
            except Exception:  # registries raise various errors for unknown names
                found = None
            if found is not None:
                return found, ""
    if dot and own not in ("visionattn", "mmdet", "mmseg", "mmengine", "mmcv", "torch"):
        return None, f"names the package {own!r}, which has no registry"
    other = find_class(name)
    known = set().union(*(registered_names(kind.name) for kind in kinds))
    what = " or ".join(kind.name for kind in kinds)
    if other is not None and name in known:
        return None, f"is not in the package default_scope={scope!r}; prefix it with its package, such as mmdet.{name}"
    article = "an" if what[0] in "aeiou" else "a"
    if other is not None:
        return None, f"must be {article} {what}{close_matches(name, known)}"
    return None, f"is not known as {article} {what}{close_matches(name, known)}"


def _wrong_arguments(node: Mapping[str, Any], path: str, cls: Any) -> Iterator[str]:
    try:
        accepted = accepted_arguments(cls)
    except (ValueError, TypeError):  # built-in classes have no signature
        return
    if accepted is None:
        return
    for key in node:
        if key not in accepted and key not in TAKEN_OUT:
            name = getattr(cls, "__name__", str(cls))
            yield f"{path}.{key}: {name} takes no such argument{close_matches(key, accepted)}"


def _missing_paths(dataset: Any, path: str) -> Iterator[str]:
    """Yield the missing files and folders of a dataset config, looking inside dataset wrappers."""
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
    """Return similar names in the folder of a path, or the deepest of its parent folders that exists."""
    above = path.parent
    if above.is_dir():
        return close_matches(path.name, [p.name for p in above.iterdir()])
    while not above.is_dir():
        above = above.parent
    return f"; the deepest existing folder is {above}"
