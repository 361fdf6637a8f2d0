"""A page for each kind of type that configs can name as ``visionattn.<Name>``, from docstrings."""

import visionattn.openmmlab  # noqa: F401  adds the types of the jobs
from extension.rst import block, title
from visionattn.engine import registry

KINDS = {
    "Models, backbones and losses": registry.MODELS,
    "Datasets": registry.DATASETS,
    "Transforms": registry.TRANSFORMS,
    "Collate functions": registry.FUNCTIONS,
    "Metrics": registry.METRICS,
    "Hooks": registry.HOOKS,
    "Optimizer wrappers": registry.OPTIM_WRAPPERS,
    "Optimizer constructors": registry.CONSTRUCTORS,
    "Loggers": registry.VISBACKENDS,
}


def pages() -> dict[str, str]:
    """Return the page of each kind by file name."""
    registry.type_names()  # imports the modules that register types
    return {
        f"config_types/{kind.split()[0].strip(',').lower()}.rst": page(kind, found) for kind, found in KINDS.items()
    }


def page(heading: str, found: registry.Registry) -> str:
    """Return the page of a registry."""
    parts = [title(heading)]
    for name, kind in sorted(found.module_dict.items()):
        parts.append(title(f"visionattn.{name}", "-"))
        directive = "autoclass" if isinstance(kind, type) else "autofunction"
        parts.append(block(directive, f"{kind.__module__}.{kind.__qualname__}"))
    return "\n".join(parts)
