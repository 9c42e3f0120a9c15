"""Sort a param group's weights into parts that one backend can serve alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .backends import Backend, Flags, choose, native
from .backends.row_major import are_row_major
from .bucket import Bucket, Rule
from .invariance import count_heads
from .projection import Extent, has_rows

__all__ = ["Part", "Sorter", "check_shapes"]

_shape, _dtype, _device = attrgetter("shape"), attrgetter("dtype"), attrgetter("device")
_fresh = count()


@dataclass(frozen=True)
class Part:
    """Which weights of a bucket, and who serves them.

    Attributes:
        indices: of the weights in the bucket, those with rows first.
        extents: of the weights with rows.
        backend: serves them.
        key: equal for parts that are laid out alike.
        place: equal as long as weights and state lie where they lay; None where that is not known.
    """

    indices: list[int]
    extents: tuple[Extent, ...]
    backend: Backend
    key: Hashable
    place: int | None = None

    def of(self, bucket: Bucket) -> Bucket:
        """The part's weights."""
        part = bucket.take(self.indices)
        part = replace(part, extents=self.extents, key=self.key, place=self.place)
        sharded = any(placement is not None for placement in part.placements)
        return part if sharded else replace(part, placements=[])


@dataclass(frozen=True)
class _Known:
    """How a bucket of plain, contiguous weights was sorted, and by what it is recognised.

    Holds weights and state, so that no other tensor can have taken over an identity.
    """

    bucket: Bucket
    traits: tuple[Any, ...]
    looks: tuple[Any, ...]
    addresses: list[list[int]] | None
    parts: list[Part]


class Sorter:
    """Sorts buckets, and remembers how: models have thousands of weights and seldom change."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[int, _Known] = {}

    def forget_from(self, index: int) -> None:
        """Let go of the weights of param groups that are there no more."""
        for gone in [known for known in self._known if known >= index]:
            del self._known[gone]

    def sort(self, index: int, bucket: Bucket, flags: Flags) -> list[Part]:
        """The parts of the bucket of param group `index`.

        Raises:
            RuntimeError: if a flag cannot be honoured, or state does not fit its weight.
        """
        if not bucket.params:
            return []
        if torch.compiler.is_compiling():
            return list(_sort(bucket, flags))
        known = self._known.get(index)
        traits = _traits(bucket, flags)
        if known is not None and traits is not None and known.traits == traits:
            addresses = _addresses(bucket, known.parts)
            if addresses is not None and addresses == known.addresses:
                return known.parts
            if known.looks == _looks(bucket):
                return self._remember(index, replace(known, addresses=addresses))
        parts = list(_sort(bucket, flags))
        self._known.pop(index, None)
        if traits is None or (looks := _looks(bucket)) is None:
            return parts
        # A number is compared faster than a shape for each of thousands of weights.
        parts = [replace(part, key=next(_fresh)) for part in parts]
        # Not the gradients, whose memory zero_grad is to give back.
        kept = replace(bucket, grads=[])
        return self._remember(index, _Known(kept, traits, looks, _addresses(bucket, parts), parts))

    def _remember(self, index: int, known: _Known) -> list[Part]:
        place = None if known.addresses is None else next(_fresh)
        parts = [replace(part, place=place) for part in known.parts]
        self._known[index] = replace(known, parts=parts)
        return parts


def _traits(bucket: Bucket, flags: Flags) -> tuple[Any, ...] | None:
    """What the sorting goes by and may differ in every step; None where that is too much.

    Made by passes of C over each list: there may be thousands of weights.
    """
    rule = _without_lr(bucket.rule)
    grads = bucket.grads
    if rule is None or any(bucket.placements) or not all(map(Tensor.is_contiguous, grads)):
        return None
    return (
        flags,
        rule,
        *(tuple(map(id, alike)) for alike in (bucket.params, *bucket.moments)),
        list(map(_shape, bucket.params)),
        list(map(Tensor.numel, grads)),
        _kinds(_dtype, grads),
        _kinds(_device, grads),
    )


def _kinds(trait: Callable[[Tensor], Any], tensors: list[Tensor]) -> Any:
    """What a trait of the tensors is; of each, where they differ, since two may change places."""
    kinds = {*map(trait, tensors)}
    return kinds if len(kinds) == 1 else list(map(trait, tensors))


def _looks(bucket: Bucket) -> tuple[Any, ...] | None:
    """What else the sorting goes by: only who assigns to `data` changes it."""
    tensors = (bucket.params, *bucket.moments)
    if not _all_contiguous(tensors):
        return None
    return (
        *(list(map(Tensor.numel, alike)) for alike in tensors[1:]),
        *(_kinds(_dtype, alike) for alike in tensors),
        *(_kinds(_device, alike) for alike in tensors),
    )


def _all_contiguous(tensors: Iterable[list[Tensor]]) -> bool:
    return all(all(map(Tensor.is_contiguous, alike)) for alike in tensors)


def _addresses(bucket: Bucket, parts: list[Part]) -> list[list[int]] | None:
    """Where contiguous weights and state lie: while that is the same, so is how they look.

    None where a backend does without addresses, since not every tensor has one, and where one is
    not contiguous: a transposed view lies where the tensor lay.
    """
    tensors = (bucket.params, *bucket.moments)
    if any(part.backend is not native for part in parts) or not _all_contiguous(tensors):
        return None
    return [list(map(Tensor.data_ptr, alike)) for alike in tensors]


def _without_lr(rule: Rule) -> Rule | None:
    """The rule but for its learning rate, which schedules change; None where tensors are in it."""
    if any(isinstance(value, Tensor) for value in vars(rule).values()):
        return None
    return replace(rule, lr=0.0)


def _sort(bucket: Bucket, flags: Flags) -> Iterator[Part]:
    check_shapes(bucket)
    placements = bucket.placements or [None] * len(bucket.params)
    for indices in _by_kind(bucket):
        sharded = placements[indices[0]] is not None
        # A sharded weight takes part in the test even if none of its rows is here.
        rows = [i for i in indices if sharded or has_rows(bucket.params[i].shape)]
        with_rows = set(rows)
        indices = rows + [i for i in indices if i not in with_rows]
        extents = tuple(
            placement.extent if placement else _extent(bucket.params[i].shape, bucket.rule)
            for i, placement in ((i, placements[i]) for i in rows)
        )
        key = (len(rows), extents, tuple(bucket.params[i].shape for i in indices))
        part = Part(indices, extents, choose(bucket.take(indices), flags), key)
        yield part


def _extent(shape: torch.Size, rule: Rule) -> Extent:
    return Extent.of(shape, count_heads(rule.scale_invariant, shape))


def _by_kind(bucket: Bucket) -> list[Sequence[int]]:
    """The weights, grouped by what decides which backend can serve them."""
    tensors = (bucket.params, bucket.grads, *bucket.moments)
    traits: list[Sequence[Any]] = [list(map(type, bucket.params))]
    for alike in tensors:
        traits += [[tensor.dtype for tensor in alike], [tensor.device for tensor in alike]]
    traits.append([placement is not None for placement in bucket.placements] or traits[0])
    kinds: dict[Any, list[int]] = defaultdict(list)
    for index, kind in enumerate(zip(*traits, map(are_row_major, *tensors), strict=True)):
        kinds[kind].append(index)
    return list(kinds.values())


def check_shapes(bucket: Bucket) -> None:
    """Refuse gradients and state of another shape than their weight's."""
    # A kernel that reads addresses would not notice.
    shapes = [param.shape for param in bucket.params]
    for others in (bucket.grads, *bucket.moments):
        if shapes != (other_shapes := [tensor.shape for tensor in others]):
            pairs = zip(shapes, other_shapes, strict=True)
            shape, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise RuntimeError(
                f"a weight of shape {tuple(shape)} has a gradient or state of shape "
                f"{tuple(other)}; delete its entry in optimizer.state if it was resized."
            )
