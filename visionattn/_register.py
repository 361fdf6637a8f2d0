"""Call a function as soon as a module has been imported."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["after_import"]


def after_import(module: str, function: Callable[[], object]) -> None:
    """Call `function` as soon as `module` has been imported: now if it has been, or at the end of its first import.

    Args:
        module: name of a top-level module.
        function: called once. Its errors become errors of the import.
    """
    if sys.modules.get(module) is not None:
        function()
    else:
        sys.meta_path.insert(0, _Finder(module, function))


class _Finder(MetaPathFinder):
    """Finds the module as the other finders do, with a loader that calls the function after the import."""

    def __init__(self, module: str, function: Callable[[], object]):
        self.module, self.function = module, function
        self.searching = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module or getattr(self.searching, "now", False):
            return None
        self.searching.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching.now = False
        if spec is not None and spec.loader is not None:
            # This finder stays until the module has been imported: others look for a module without importing it.
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """The module's own loader; restores itself in the module and calls the function after executing the module."""

    def __init__(self, loader: Loader, finder: _Finder):
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            self.finder.function()
            sys.meta_path.remove(self.finder)
