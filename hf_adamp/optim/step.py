"""The step itself: accumulate → decide → apply, for the weights of all param groups together.

A *section* is what is decided at once: all weights of one device, precision and backend, or on a
CPU a chunk of them that stays in cache between the three stages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate as running_sum
from itertools import pairwise
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import projection
from .backends import Backend, Flags, choose
from .backends.row_major import are_row_major
from .bucket import Bucket, Scalar, working_dtype
from .distributed import Placement, Reducer
from .projection import Decision, Layout, Statistic, StepRecord, Views

__all__ = ["SectionCache", "run"]


@dataclass
class _Kept:
    """What a section keeps from step to step: its layout and its buckets' memos."""

    layout: Layout | None
    memos: list[dict[str, Any]]


SectionCache: TypeAlias = dict[Any, _Kept]

# A new set of weights (another task, a frozen layer) makes a new layout; few are ever live.
_KEPT_SECTIONS = 64


def run(
    buckets: Sequence[Bucket],
    flags: Sequence[Flags],
    *,
    sections: SectionCache | None = None,
    reducer: Reducer | None = None,
    recording: bool = False,
) -> list[StepRecord]:
    """Update the weights of all buckets.

    Args:
        buckets: one a param group; devices, dtypes and shapes may be mixed in each.
        flags: what each bucket asks of its backend.
        sections: what is kept from step to step; None keeps nothing.
        reducer: adds up the statistics of sharded weights; None where none is sharded.
        recording: whether to derive records, which costs one more statistic a row.

    Returns:
        One record for every section that has weights with rows, if recording.

    Raises:
        RuntimeError: if a flag asks for a backend that cannot serve a weight, or state does not
            fit its weight. Raised before anything is changed.
    """
    parts: dict[Any, list[Bucket]] = defaultdict(list)
    for bucket, flag in zip(buckets, flags, strict=True):
        for part in _split_by_kind(bucket):
            param = part.params[0]
            backend, dtype = choose(part, flag), working_dtype(param.dtype)
            parts[bool(part.placements), backend, param.device, dtype].append(part)

    for bucket in buckets:
        _count_step(bucket.state_steps)
    records = []
    in_step = []
    for (sharded, backend, _, dtype), alike in parts.items():
        for chunk in [alike] if sharded else _chunks(alike, backend.chunk_elements):
            section = _Section.of(chunk, backend, dtype, sections)
            section.accumulate(recording=recording)
            if sharded:
                in_step.append(section)
            else:
                section.finish(section.total())
                records += section.record() if recording else []
    if reducer is not None:
        # Whatever this process has to contribute, all of them meet here.
        records += _run_sharded(in_step, reducer, recording=recording)
    return records


def _count_step(state_steps: list[Tensor]) -> None:
    if not state_steps:
        return
    if state_steps[0].is_cpu and not torch.compiler.is_compiling():
        # A Python 1 would be wrapped into a tensor again for every weight.
        torch._foreach_add_(state_steps, torch.tensor(1.0), alpha=1.0)
    else:
        torch._foreach_add_(state_steps, 1)


def _run_sharded(
    sections: list[_Section], reducer: Reducer, *, recording: bool
) -> list[StepRecord]:
    reducer.add_rows([(section.placements(), section.stats) for section in sections])
    totals = [section.total() for section in sections]
    placements = [section.placements() for section in sections]
    reducer.add_weights(list(zip(placements, totals, strict=True)))
    for section, total in zip(sections, totals, strict=True):
        section.finish(total)
    return [record for section in sections for record in section.record() if recording]


@dataclass
class _Section:
    """Weights that are decided at once, on their way through the three stages."""

    buckets: list[Bucket]
    backend: Backend
    layout: Layout | None
    stats: Tensor
    pending: list[Any] = field(default_factory=list)
    totals: Tensor | None = None
    views: Views | None = None

    @classmethod
    def of(
        cls,
        buckets: list[Bucket],
        backend: Backend,
        dtype: torch.dtype,
        sections: SectionCache | None,
    ) -> _Section:
        device = buckets[0].params[0].device
        kept = _keep(buckets, dtype, device, sections)
        weights = _running_slices(bucket.matrices for bucket in buckets)
        rows = _running_slices(
            sum(extent.rows for extent in bucket.extents()) for bucket in buckets
        )
        placed = [
            replace(bucket, weights=w, rows=r, memo=memo)
            for bucket, w, r, memo in zip(buckets, weights, rows, kept.memos, strict=True)
        ]
        stats = torch.zeros(len(Statistic), rows[-1].stop, dtype=dtype, device=device)
        return cls(placed, backend, kept.layout, stats)

    def accumulate(self, *, recording: bool) -> None:
        self.pending = [
            self.backend.accumulate(bucket, self.stats, recording=recording)
            for bucket in self.buckets
        ]

    def total(self) -> Tensor:
        if self.layout is None:
            return self.stats.new_empty(len(Statistic) + 1, 0)
        return projection.total(self.stats, self.layout)

    def finish(self, totals: Tensor) -> None:
        """Decide and apply; `totals` are those of all processes."""
        decision = None
        if self.layout is not None:
            self.totals = totals
            self.views = projection.choose_views(totals, self.layout)
            decision = Decision(self.views, self._shift(self.views, totals))
        for bucket, state in zip(self.buckets, self.pending, strict=True):
            self.backend.apply(bucket, self.stats, decision, state)

    def record(self) -> list[StepRecord]:
        if self.layout is None or self.views is None or self.totals is None:
            return []
        # Sized anew: a backend may have learnt step·w after the decision, which does not need it.
        totals = self.total()
        decision = Decision(self.views, self._shift(self.views, totals))
        params = [param for bucket in self.buckets for param in bucket.params[: bucket.matrices]]
        return [projection.record(params, self.stats, totals, self.layout, decision)]

    def _shift(self, views: Views, totals: Tensor) -> Tensor:
        assert self.layout is not None
        rules = [(bucket.matrices, bucket.rule) for bucket in self.buckets]
        decay = _per_weight([(n, rule.decay) for n, rule in rules], totals)
        projected = _per_weight([(n, rule.decay * rule.wd_ratio) for n, rule in rules], totals)
        return projection.shift_rows(self.stats, totals, self.layout, views, decay, projected)

    def placements(self) -> list[Placement]:
        return [
            placement
            for bucket in self.buckets
            for placement in bucket.placements
            if placement is not None
        ]


def _running_slices(counts: Iterable[int]) -> list[slice]:
    ends = list(running_sum(counts, initial=0))
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _split_by_kind(bucket: Bucket) -> Iterator[Bucket]:
    """Parts that one backend can serve alike, weights with rows first in each."""
    with_rows = bucket.with_rows()
    for indices in _indices_by_kind(bucket):
        rows = [index for index in indices if with_rows[index]]
        others = [index for index in indices if not with_rows[index]]
        part = replace(bucket.take(rows + others), matrices=len(rows))
        sharded = any(placement is not None for placement in part.placements)
        yield part if sharded else replace(part, placements=[])


def _indices_by_kind(bucket: Bucket) -> Iterable[Sequence[int]]:
    """The weights, grouped by what decides which backend can serve them."""
    if not bucket.params:
        return []
    _check_shapes(bucket)
    # Passes of C over each list, not a Python loop over weights, of which there are thousands.
    tensors = (bucket.params, bucket.grads, *bucket.moments)
    traits: list[list[Any]] = [list(map(type, bucket.params))]
    for alike in tensors:
        traits += [list(map(attrgetter(trait), alike)) for trait in ("dtype", "device")]
    if bucket.placements:
        traits.append([placement is not None for placement in bucket.placements])
    contiguous = all(all(map(Tensor.is_contiguous, alike)) for alike in tensors)
    if contiguous and all(len(set(trait)) == 1 for trait in traits):
        return [range(len(bucket.params))]
    kinds: dict[Any, list[int]] = defaultdict(list)
    for index, kind in enumerate(zip(*traits, map(are_row_major, *tensors), strict=True)):
        kinds[kind].append(index)
    return kinds.values()


def _check_shapes(bucket: Bucket) -> None:
    # A kernel that reads addresses would not notice.
    shapes = list(map(attrgetter("shape"), bucket.params))
    for others in (bucket.grads, *bucket.moments):
        if shapes != (other_shapes := list(map(attrgetter("shape"), others))):
            pairs = zip(shapes, other_shapes, strict=True)
            shape, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise RuntimeError(
                f"a weight of shape {tuple(shape)} has a gradient or state of shape "
                f"{tuple(other)}; delete its entry in optimizer.state if it was resized."
            )


def _chunks(buckets: list[Bucket], limit: int | None) -> Iterator[list[Bucket]]:
    """Runs of weights with at most `limit` elements in all, or one weight; None sets no limit."""
    if limit is None or torch.compiler.is_compiling():
        yield buckets
        return
    chunk: list[Bucket] = []
    size = 0
    for bucket in buckets:
        begin = 0
        for index, param in enumerate(bucket.params):
            if size and size + param.numel() > limit:
                yield [*chunk, bucket.part(begin, index)] if index > begin else chunk
                chunk, size, begin = [], 0, index
            size += param.numel()
        chunk.append(bucket.part(begin, len(bucket.params)))
    yield chunk


def _keep(
    buckets: list[Bucket],
    dtype: torch.dtype,
    device: torch.device,
    sections: SectionCache | None,
) -> _Kept:
    """What this section keeps, made now if it is new."""
    options = [(bucket.rule.delta, bucket.rule.eps, bucket.matrices) for bucket in buckets]
    shapes = [tuple(param.shape for param in bucket.params) for bucket in buckets]
    extents = tuple(extent for bucket in buckets for extent in bucket.extents())
    sharded = bool(buckets[0].placements)
    key = (*options, *shapes, extents if sharded else None, dtype, device)
    # A compiled step keeps nothing: the tensors it builds belong to its graph.
    if torch.compiler.is_compiling():
        sections = None
    if sections is not None and key in sections:
        return sections[key]
    layout = None
    if extents:
        deltas = [delta for delta, _, n in options for _ in range(n)]
        eps = [eps for _, eps, n in options for _ in range(n)]
        layout = Layout.build(extents, deltas, eps, dtype=dtype, device=device)
    kept = _Kept(layout, [{} for _ in buckets])
    if sections is not None:
        if len(sections) >= _KEPT_SECTIONS:
            sections.clear()
        sections[key] = kept
    return kept


def _per_weight(values: list[tuple[int, Scalar]], like: Tensor) -> Tensor:
    # Filled on the device: a copy from the host would have to be waited for.
    return torch.cat(
        [
            value.to(like, non_blocking=True).reshape(1).expand(count)
            if isinstance(value, Tensor)
            else like.new_full((count,), value)
            for count, value in values
        ]
    )
