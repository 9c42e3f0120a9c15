"""Be told when a module has been imported, without importing it: a finder and a watched spec."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

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
                _watch(spec)
                return spec
        return None


_finder = _Finder()


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once the module `name` is fully imported; at once if it already is.

    Asking twice for the same callback has the effect of asking once. An exception that `callback`
    raises comes out of the import statement that loaded the module.

    Args:
        name: Full name of the module, which need not be imported yet, or ever.
        callback: Called without arguments, in the thread that imports the module.

    Example:
        >>> when_imported("json.tool", lambda: print("loaded"))
        >>> import json.tool
        loaded
    """
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is not None and not getattr(spec, "_initializing", False):
        callback()
        return
    waiting = _callbacks.setdefault(name, [])
    if callback not in waiting:
        waiting.append(callback)
    if spec is not None:
        _watch(spec)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # type: ignore[arg-type]


def _watch(spec: ModuleSpec) -> None:
    if type(spec) is ModuleSpec:
        spec.__class__ = _WatchedSpec


def _notify(name: str) -> None:
    callbacks = _callbacks.pop(name, [])
    if not _callbacks and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)  # type: ignore[arg-type]
    for callback in callbacks:
        callback()
