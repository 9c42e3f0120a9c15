"""Be told when a module has been imported, without importing it: a finder and a watched spec.

Every time: a program may import a module again, by `importlib.reload` or after it has taken it out
of `sys.modules`, and what was done to the first must then be done to the second.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]

_callbacks: dict[str, list[Callable[[], None]]] = {}


class _WatchedSpec(ModuleSpec):
    """A spec that reports when the import system ends its module's initialisation.

    That end is visible only here when the module is already half executed: a program whose first
    import is ``from transformers import TrainingArguments`` imports torch, and so calls us, from
    within ``transformers.training_args``.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing", False))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        # A module whose execution failed has left sys.modules; the finder waits for the next try.
        if not value and self.name in sys.modules:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            _notify(self.name)


class _ReloadingLoader:
    """A loader that reports when it has executed its module anew.

    `importlib.reload` never says that it begins or ends: it calls the loader, and that is all.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        self._spec = spec
        self._loader: Any = spec.loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _notify(self._spec.name)


class _Finder:
    """Let the finders behind this one find the awaited modules, and watch their specs."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _callbacks:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                # Only a reload has a module already.
                if target is None:
                    _watch(spec)
                elif spec.loader is not None:
                    spec.loader = _ReloadingLoader(spec)  # type: ignore[assignment]
                return spec
        return None


_finder = _Finder()


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` whenever the module `name` is fully imported; at once if it already is.

    Asking twice for the same callback has the effect of asking once. An exception that `callback`
    raises comes out of the import statement that loaded the module.

    Args:
        name: Full name of the module, which need not be imported yet, or ever.
        callback: Called without arguments, in the thread that imports the module: after each
            import, so it must do no harm to a module that it has seen before.

    Example:
        >>> when_imported("json.tool", lambda: print("loaded"))
        >>> import json.tool
        loaded
    """
    waiting = _callbacks.setdefault(name, [])
    if callback not in waiting:
        waiting.append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # type: ignore[arg-type]
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:
        return
    if getattr(spec, "_initializing", False):
        _watch(spec)
    else:
        callback()


def _watch(spec: ModuleSpec) -> None:
    if type(spec) is ModuleSpec:
        spec.__class__ = _WatchedSpec


def _notify(name: str) -> None:
    for callback in tuple(_callbacks.get(name, ())):
        callback()
