"""Pages about the Python interface, from docstrings."""

import importlib
import re
from typing import Any

from extension.rst import block, title

MODULES = {
    "visionattn.kernels": "Kernels",
    "visionattn.kernels.backends": "Backends of the kernels",
    "visionattn.kernels.simulator.simulate": "Simulation of neighborhood attention",
    "visionattn.layers": "Layers",
    "visionattn.backbones": "Backbones",
    "visionattn.inference": "Inference",
    "visionattn.inference.job": "Jobs",
    "visionattn.inference.export": "Export",
    "visionattn.zoo": "Trained models",
    "visionattn.io.configs": "Configs of the package",
    "visionattn.engine.config.load": "Reading configs",
    "visionattn.engine.train.train": "Training",
    "visionattn.openmmlab": "Registration with OpenMMLab",
    "visionattn.compat.natten": "The interface of NATTEN",
    "visionattn.errors": "Errors",
}


def pages() -> dict[str, str]:
    """Return the page of each module by file name."""
    return {f"python/{name}.rst": page(name, text) for name, text in MODULES.items()}


def page(name: str, heading: str) -> str:
    """Return the page of a module: its docstring, and what is public in it."""
    names = getattr(importlib.import_module(name), "__all__", None)
    options = {"members": ""} if names is None else {"members": ", ".join(names)}
    return title(heading) + "\n" + block("automodule", name, **options, **{"show-inheritance": ""})


def without_fences(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Replace Markdown code blocks in a docstring by those of reStructuredText."""
    text = re.sub(
        r"^( *)```(\w*)\n(.*?)^\1```$",
        lambda found: block("code-block", found[2] or "text", found[3]).replace("\n", f"\n{found[1]}"),
        "\n".join(lines),
        flags=re.DOTALL | re.MULTILINE,
    )
    lines[:] = text.split("\n")
