"""Registration of the interface as the module ``natten``."""

import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterable
from email.message import Message
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from visionattn.compat.natten import context, dense, functional, old_names, types
from visionattn.compat.natten.modules import modules_of

__all__ = ["VERSION", "install", "installed_version", "uninstall"]

VERSION = "0.17.5"
"""The last version with a position bias, separate operators, and support of CPUs."""


class _Metadata(importlib.metadata.Distribution):
    """Metadata of a distribution ``natten``, which libraries read to find out its version."""

    def __init__(self, version: str) -> None:
        self.text = f"Metadata-Version: 2.1\nName: natten\nVersion: {version}\nSummary: provided by visionattn\n"

    def read_text(self, filename: str) -> str | None:
        return (
            self.text if filename in ("METADATA", "PKG-INFO") else "natten\n" if filename == "top_level.txt" else None
        )

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"natten is provided by visionattn and has no file {path}")

    @property
    def metadata(self) -> Message:
        from email import message_from_string

        return message_from_string(self.text)


class _Finder:
    """Finder of the metadata; the modules themselves are in `sys.modules`."""

    def __init__(self, version: str) -> None:
        self.distribution = _Metadata(version)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        name = None if context is None else context.name
        return [self.distribution] if name in (None, "natten") else []


def _module(name: str, names: dict[str, Any], doc: str) -> ModuleType:
    module = ModuleType(name, doc)
    module.__spec__ = ModuleSpec(name, None, origin="visionattn.compat.natten", is_package=name == "natten")
    module.__visionattn__ = True
    module.__dict__.update(names)
    if name == "natten":
        module.__path__ = []
    return module


def _public(module: ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


def installed_version() -> str | None:
    """Return the version of the NATTEN library, or None if it is not installed; `install` does not count."""
    if is_ours(sys.modules.get("natten")):
        return None
    if importlib.util.find_spec("natten") is None:
        return None
    try:
        return importlib.metadata.version("natten")
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get("natten"), "__version__", "of unknown version"))


def is_ours(module: ModuleType | None) -> bool:
    """Return True for a module that `install` has registered."""
    return getattr(module, "__visionattn__", False) is True


def _modules(version: str) -> dict[str, ModuleType]:
    parts = tuple(int(part) for part in version.split(".")[:2])
    operators = _public(functional) | _public(dense) | _public(old_names)
    if parts >= (0, 20):
        operators |= {f"na{rank}d": functional.fused_since_020(rank) for rank in (1, 2, 3)}
    classes, switches = modules_of(parts), _public(context)
    doc = "Interface of the NATTEN library, provided by visionattn.compat.natten."
    found = {
        "natten.functional": operators,
        "natten.context": switches,
        "natten.types": _public(types),
        "natten.modules": classes,
    }
    for rank in (1, 2, 3):
        found[f"natten.natten{rank}d"] = {name: x for name, x in classes.items() if str(rank) in name}
    modules = {name: _module(name, names, doc) for name, names in found.items()}
    top = operators | classes | switches | {"__version__": version}
    top |= {name.removeprefix("natten."): module for name, module in modules.items()}
    return {"natten": _module("natten", top, doc), **modules}


def install(version: str = VERSION) -> bool:
    """Register the interface as the module ``natten``, so that code that imports NATTEN uses this package.

    Call it before the import of the library that needs NATTEN: libraries look for it when they are imported.

    Args:
        version: of NATTEN, such as ``"0.14.6"``, ``"0.17.5"`` or ``"0.21.0"``; decides on the order of arguments, see
            `functional` and `modules`.

    Returns:
        False, with a warning, if the NATTEN library itself is installed, which then stays in use; True otherwise.

    Raises:
        ValueError: a version that is not two or more numbers, or older than 0.14, which has other signatures.
    """
    numbers = version.split(".")
    if (
        len(numbers) < 2
        or not all(part.isdigit() for part in numbers[:2])
        or (int(numbers[0]), int(numbers[1])) < (0, 14)
    ):
        raise ValueError(f"`version` must be 0.14 or later, such as 0.17.5, got {version!r}")
    found = installed_version()
    if found is not None:
        warnings.warn(
            f"the NATTEN library {found} is installed and stays in use; visionattn.compat.natten was not registered",
            stacklevel=2,
        )
        return False
    current = sys.modules.get("natten")
    if is_ours(current) and current.__version__ == version:
        return True
    uninstall()
    sys.modules.update(_modules(version))
    sys.meta_path.append(_Finder(version))
    importlib.invalidate_caches()
    return True


def uninstall() -> None:
    """Remove what `install` has registered; libraries that have imported it keep it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "natten" and is_ours(sys.modules[name])]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
