"""What an optimizer's groups were made with, and what a framework has put in the place of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout import has_rows
from .flat import FlatTensor
from .refusals import cut_message, flattened_message, is_spread, refuse_flattened, refuse_fsdp1
from .zero import is_loaded, is_partitioned, known_shape, read_flat

__all__ = ["Origins"]

Name = Callable[[int], str]


@dataclass(frozen=True)
class _Added:
    """A group when it was added.

    Attributes:
        has_matrices: whether any of its weights had rows.
        weights: only where DeepSpeed is loaded, since a tensor with a weak reference cannot be
            exchanged by torch.utils.swap_tensors.
        names: what messages call them.
    """

    has_matrices: bool
    weights: tuple[weakref.ref[Tensor], ...]
    names: tuple[str, ...]


class Origins:
    """Remembers the groups of an optimizer, by the identity of their dictionaries."""

    def __init__(self) -> None:
        self._groups: dict[int, _Added] = {}
        # The shapes of the weights that were added, by their identity; None while they have none.
        self._shapes: dict[int, torch.Size | None] = {}

    def remember(self, group: Mapping[str, Any], name: Name) -> None:
        """Look at a group that is added."""
        params = group["params"]
        traced = tuple(map(weakref.ref, params)) if is_loaded() else ()
        names = tuple(map(name, range(len(traced))))
        self._groups[id(group)] = _Added(any(map(_is_matrix, params)), traced, names)
        for param in params:
            self._shapes[id(param)] = known_shape(param)

    def carry_over(
        self, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
    ) -> None:
        """Know groups again whose dictionaries were exchanged, as loading a checkpoint does."""
        added = [self._groups.get(id(group)) for group in before]
        self._groups = {
            id(group): own for group, own in zip(after, added, strict=True) if own is not None
        }

    def is_stranger(self, param: Tensor) -> bool:
        """Whether this weight has come into its group without the optimizer's knowledge."""
        return id(param) not in self._shapes

    def flat_tensors(self, group: Mapping[str, Any], name: Name) -> list[FlatTensor]:
        """What flat tensors hold that have taken the place of a group's weights, if they have.

        Raises:
            RuntimeError: for weights that were flattened in a way that cannot be read.
        """
        added, params = self._groups.get(id(group)), group["params"]
        strangers = [index for index, param in enumerate(params) if self.is_stranger(param)]
        # A group that is emptied, moved or given the weights of another has not been flattened.
        if not strangers or added is None or not added.has_matrices:
            return []
        if any(map(_is_matrix, params)):
            return []
        for index in strangers:
            refuse_fsdp1(params[index], name(index))
        weights = [weight for reference in added.weights if (weight := reference()) is not None]
        if not weights or len(weights) < len(added.weights):
            raise RuntimeError(flattened_message(name(strangers[0])))
        return [read_flat(param, weights, added.names, group) for param in params]

    def refuse_unreadable(self, group: Mapping[str, Any], name: Name, *, stepping: bool) -> None:
        """Refuse weights whose rows cannot be seen, or have been cut.

        `stepping` says whether they are to be stepped: a weight of ZeRO-3 may be added, since
        another tensor takes its place before it is.
        """
        added = self._groups.get(id(group))
        for index, param in enumerate(group["params"]):
            # What has taken the place of vectors alone has no rows to be seen.
            are_vectors = added is not None and not added.has_matrices and self.is_stranger(param)
            if not are_vectors and (stepping or not is_partitioned(param)):
                refuse_flattened(param, name(index))
            shape, now = self._shapes.get(id(param)), known_shape(param)
            if shape is None or now is None:
                if id(param) in self._shapes:
                    self._shapes[id(param)] = now
            elif shape != param.shape and is_spread() and not is_partitioned(param):
                raise RuntimeError(cut_message(name(index), shape, param.shape))


def _is_matrix(param: Tensor) -> bool:
    """Whether a weight has rows; one without a shape may get some."""
    shape = known_shape(param)
    return shape is None or has_rows(shape)
