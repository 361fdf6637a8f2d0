"""The registries whose names a config writes as ``visionattn.<Name>``.

mmengine reads a dotted type as ``scope.name`` and looks for the scope among the children of the root registry,
so one child each under the scope ``visionattn`` is found from mmdet's and mmseg's registries alike.
"""

from mmengine import registry as root
from mmengine.registry import Registry

__all__ = ["DATASETS", "FUNCTIONS", "HOOKS", "METRICS", "MODELS", "OPTIM_WRAPPERS", "TRANSFORMS", "VISBACKENDS"]

SCOPE = "visionattn"

MODELS = Registry("model", scope=SCOPE, parent=root.MODELS, locations=["visionattn.openmmlab"])
DATASETS = Registry(
    "dataset",
    scope=SCOPE,
    parent=root.DATASETS,
    locations=["visionattn.openmmlab", "visionattn.engine.parts.datasets"],  # the second imports mmseg
)
TRANSFORMS = Registry("transform", scope=SCOPE, parent=root.TRANSFORMS, locations=["visionattn.openmmlab"])
FUNCTIONS = Registry("function", scope=SCOPE, parent=root.FUNCTIONS, locations=["visionattn.engine.parts.datasets"])
METRICS = Registry(
    "metric",
    scope=SCOPE,
    parent=root.METRICS,
    locations=["visionattn.engine.parts.metrics"],  # imported when looked up
)
HOOKS = Registry("hook", scope=SCOPE, parent=root.HOOKS, locations=["visionattn.openmmlab"])
OPTIM_WRAPPERS = Registry("optim_wrapper", scope=SCOPE, parent=root.OPTIM_WRAPPERS, locations=["visionattn.openmmlab"])
VISBACKENDS = Registry("vis_backend", scope=SCOPE, parent=root.VISBACKENDS, locations=["visionattn.openmmlab"])
