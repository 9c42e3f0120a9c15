"""What can be reached from an object and changed: recorded, exchanged, and put back in place.

A forward pass may write anywhere. It installs hooks and notes that it has, fills a cache inside a
cache, counts in a closure, changes its config. Putting back one of these without the others breaks
a model, so all of them are put back, into the very containers that held them.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["State", "cached_functions"]

# What holds nothing that a forward pass could change.
_ATOMS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    torch.dtype,
    torch.device,
    BuiltinFunctionType,
)
# What belongs to the program around a model, even where the model knows it.
_OUTSIDE = (
    type,
    ModuleType,
    logging.Logger,
    logging.Handler,
    threading.Thread,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    torch.optim.Optimizer,
    torch.utils.data.Dataset,
    torch.utils.data.DataLoader,
)
_Change = Callable[[Tensor], Tensor]


class State:
    """The contents of every container that can be reached from some objects.

    Containers are lists, sets and the like, the attributes of objects, and the variables that
    functions close over. Beside them the state of random number generators is kept. Values
    that lie in a tensor are not: `exchange` puts other tensors in its place.

    Args:
        roots: Where to begin.
    """

    def __init__(self, *roots: Any) -> None:
        self._kept: list[_Kept] = []
        self.objects: list[Any] = []
        for item in _reachable(roots):
            self.objects.append(item)
            kept = _keep(item)
            if kept is not None:
                self._kept.append(kept)

    def exchange(self, change: _Change) -> None:
        """Put `change(tensor)` in the place of every tensor."""
        for kept in self._kept:
            kept.exchange(change)

    def restore(self) -> None:
        """Put back what the containers held; only those that hold something else are touched."""
        for kept in self._kept:
            kept.restore()


class _Kept:
    """A container with its contents. Subclasses know how to read and to write their kind."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self.contents = tuple(self.read())

    def read(self) -> Iterable[Any]:
        return self.container  # type: ignore[no-any-return]

    def write(self, contents: tuple[Any, ...]) -> None:
        raise NotImplementedError

    def exchange(self, change: _Change) -> None:
        contents = tuple(_exchanged(value, change) for value in self.contents)
        if not _identical(contents, self.contents):
            self.write(contents)

    def restore(self) -> None:
        if not _identical(tuple(self.read()), self.contents):
            self.write(self.contents)


class _Dict(_Kept):
    """A dictionary. Methods of its base: a subclass may forbid its own (ModelOutput does)."""

    def __init__(self, container: dict[Any, Any]) -> None:
        self.base: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        self.keys = tuple(container)
        super().__init__(container)

    def read(self) -> Iterable[Any]:
        return self.base.values(self.container)  # type: ignore[no-any-return]

    def write(self, contents: tuple[Any, ...]) -> None:
        self.base.clear(self.container)
        for key, value in zip(self.keys, contents, strict=True):
            self.base.__setitem__(self.container, key, value)

    def restore(self) -> None:
        if not _identical(tuple(self.container), self.keys):
            self.write(self.contents)
        super().restore()


class _List(_Kept):
    def write(self, contents: tuple[Any, ...]) -> None:
        list.__setitem__(self.container, slice(None), contents)


class _Bag(_Kept):
    """A set or a deque."""

    def write(self, contents: tuple[Any, ...]) -> None:
        self.container.clear()
        (self.container.update if isinstance(self.container, set) else self.container.extend)(
            contents
        )


class _Cell(_Kept):
    """A variable that a function closes over."""

    def read(self) -> Iterable[Any]:
        try:
            return (self.container.cell_contents,)
        except ValueError:
            return ()

    def write(self, contents: tuple[Any, ...]) -> None:
        if contents:
            self.container.cell_contents = contents[0]
        else:
            del self.container.cell_contents


class _Slots(_Kept):
    """The attributes of an object that has them outside of a dictionary."""

    def read(self) -> Iterable[Any]:
        return (getattr(self.container, name, None) for name in _slots(self.container))

    def write(self, contents: tuple[Any, ...]) -> None:
        for name, value in zip(_slots(self.container), contents, strict=True):
            if getattr(self.container, name, None) is not value:
                object.__setattr__(self.container, name, value)


class _Noise(_Kept):
    """A random number generator; its state is read anew each time, so it is always put back."""

    def read(self) -> Iterable[Any]:
        generator = self.container
        if isinstance(generator, torch.Generator):
            return (generator.get_state(),)
        if isinstance(generator, random.Random):
            return (generator.getstate(),)
        return (generator.bit_generator.state,)

    def exchange(self, change: _Change) -> None:
        """A state is not one of the model's tensors."""

    def restore(self) -> None:
        generator, (state,) = self.container, self.contents
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            generator.setstate(state)
        else:
            generator.bit_generator.state = state


class _Array(_Kept):
    """An array of NumPy's."""

    def read(self) -> Iterable[Any]:
        return (self.container.copy(),)

    def exchange(self, change: _Change) -> None:
        """An array holds no tensor."""

    def restore(self) -> None:
        self.container[...] = self.contents[0]


def _keep(item: Any) -> _Kept | None:
    numpy = sys.modules.get("numpy")
    if isinstance(item, dict):
        return _Dict(item)
    if isinstance(item, list):
        return _List(item)
    if isinstance(item, (set, deque)):
        return _Bag(item)
    if isinstance(item, CellType):
        return _Cell(item)
    if isinstance(item, (torch.Generator, random.Random)):
        return _Noise(item)
    if numpy and isinstance(item, numpy.random.Generator):
        return _Noise(item)
    if numpy and isinstance(item, numpy.ndarray):
        return _Array(item) if item.flags.writeable else None
    return _Slots(item) if _slots(item) else None


def _reachable(roots: Iterable[Any]) -> Iterator[Any]:
    """Everything that the roots lead to, each thing once."""
    seen: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if isinstance(item, (*_ATOMS, *_OUTSIDE)) or id(item) in seen:
            continue
        # Kept, so that no other object gets its id.
        seen[id(item)] = item
        yield item
        waiting.extend(_within(item))


def _within(item: Any) -> Iterator[Any]:
    """What an object leads to."""
    if isinstance(item, Tensor):
        return
    if isinstance(item, dict):
        yield from dict.values(item)
    elif isinstance(item, (list, tuple, set, frozenset, deque)):
        yield from item
    elif isinstance(item, FunctionType):
        yield from item.__closure__ or ()
        yield from item.__defaults__ or ()
        yield from (item.__kwdefaults__ or {}).values()
    elif isinstance(item, CellType):
        yield from _Cell(item).contents
    elif isinstance(item, MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, partial):
        yield from (item.func, item.args, item.keywords)
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield attributes
    yield from (getattr(item, name, None) for name in _slots(item))


def _slots(item: Any) -> list[str]:
    """The names of an object's slots."""
    if isinstance(item, (FunctionType, MethodType, partial, CellType, Tensor)):
        return []
    declared = (vars(cls).get("__slots__", ()) for cls in type(item).__mro__[:-1])
    names = [name for slots in declared for name in ((slots,) if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _identical(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _exchanged(value: Any, change: _Change) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = tuple(_exchanged(item, change) for item in value)
        if not _identical(items, tuple(value)):
            return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


def cached_functions(modules: Iterable[nn.Module]) -> list[Any]:
    """Functions with a memory (`functools.lru_cache`) that the modules' source files have.

    What they remember is keyed by their arguments alone, and so outlives a change of the numbers
    behind them: DINOv3's coordinates, for one, asked for in float32 and made in float64.
    """
    classes = {cls for module in modules for cls in type(module).__mro__}
    ours = [cls for cls in classes if cls.__module__.partition(".")[0] not in ("torch", "builtins")]
    files = {id(file): file for cls in ours if (file := sys.modules.get(cls.__module__))}
    found: dict[int, Any] = {}
    for holder in (*ours, *files.values()):
        for value in list(vars(holder).values()):
            for function in _unwrapped(value):
                if hasattr(function, "cache_clear") and hasattr(function, "cache_info"):
                    found[id(function)] = function
    return list(found.values())


def _unwrapped(value: Any) -> Iterator[Any]:
    """A function, and those that decorators hide behind it."""
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    yield value
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            yield from _Cell(cell).contents
