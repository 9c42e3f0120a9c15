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
from typing import Any

import torch
from torch import Tensor

from . import projection
from .backends import (
    Backend,
    Flags,
    cuda_decision,
    cuda_triton,
    native,
    native_decision,
)
from .bucket import Bucket, Scalar, working_dtype
from .distributed import Placement, Reducer
from .projection import Decision, Layout, Statistic, StepRecord
from .sorting import Sorter

__all__ = ["Memory", "run"]


# A new set of weights (another task, a frozen layer) makes new layouts; few are ever live beside
# those of the latest step, which are hundreds where a large model is cut into chunks.
_KEPT_SECTIONS = 64


@dataclass
class _Kept:
    """What a section keeps from step to step: layout, its buckets' memos, a statistics buffer."""

    layout: Layout | None
    memos: list[dict[str, Any]]
    stats: Tensor | None = None


@dataclass
class Memory:
    """What an optimizer keeps from step to step and can make anew at any time."""

    sorter: Sorter = field(default_factory=Sorter)
    sections: dict[Any, _Kept] = field(default_factory=dict)
    in_step: int = 0  # how many sections the latest step had


def run(
    buckets: Sequence[Bucket],
    flags: Sequence[Flags],
    *,
    memory: Memory | None = None,
    reducer: Reducer | None = None,
    recording: bool = False,
) -> list[StepRecord]:
    """Update the weights of all buckets.

    Args:
        buckets: one a param group; devices, dtypes and shapes may be mixed in each.
        flags: what each bucket asks of its backend.
        memory: what is kept from step to step; None keeps nothing.
        reducer: adds up the statistics of sharded weights; None where none is sharded.
        recording: whether to derive records, which costs one more statistic a row.

    Returns:
        One record for every section that has weights with rows, if recording.

    Raises:
        RuntimeError: if a flag asks for a backend that cannot serve a weight, or state does not
            fit its weight. Raised before anything is changed.
    """
    memory = memory or Memory()
    alike: dict[Any, list[Bucket]] = defaultdict(list)
    backends: dict[str, Backend] = {}
    memory.sorter.forget_from(len(buckets))
    for index, (bucket, flag) in enumerate(zip(buckets, flags, strict=True)):
        for part in memory.sorter.sort(index, bucket, flag):
            piece = part.of(bucket)
            param = piece.params[0]
            backends[part.backend.name] = part.backend
            name, dtype = part.backend.name, working_dtype(param.dtype)
            alike[bool(piece.placements), name, param.device, dtype].append(piece)

    for bucket in buckets:
        _count_step(bucket.state_steps)
    records = []
    in_step = []
    count = 0
    for (sharded, name, _, dtype), pieces in alike.items():
        backend = backends[name]
        for chunk in [pieces] if sharded else _chunks(pieces, backend.chunk_elements):
            section = _Section.of(chunk, backend, dtype, memory)
            count += 1
            section.accumulate(recording=recording)
            if sharded:
                in_step.append(section)
            else:
                section.finish(section.total())
                records += section.record() if recording else []
    if reducer is not None:
        # Whatever this process has to contribute, all of them meet here.
        records += _run_sharded(in_step, reducer, recording=recording)
    memory.in_step = count
    return records


def _count_step(state_steps: list[Tensor]) -> None:
    if not state_steps:
        return
    if torch.compiler.is_compiling() or not state_steps[0].is_cpu:
        torch._foreach_add_(state_steps, 1)
    elif not native.count(state_steps):
        # A Python 1 would be wrapped into a tensor again for every weight.
        torch._foreach_add_(state_steps, torch.tensor(1.0), alpha=1.0)


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
    decision: Decision | None = None

    @classmethod
    def of(
        cls,
        buckets: list[Bucket],
        backend: Backend,
        dtype: torch.dtype,
        memory: Memory,
    ) -> _Section:
        device = buckets[0].params[0].device
        kept = _keep(buckets, dtype, device, memory)
        weights = _running_slices(bucket.matrices for bucket in buckets)
        rows = _running_slices(sum(extent.rows for extent in bucket.extents) for bucket in buckets)
        placed = [
            replace(bucket, weights=w, rows=r, memo=memo)
            for bucket, w, r, memo in zip(buckets, weights, rows, kept.memos, strict=True)
        ]
        # The native kernel writes every number of its buffer. Sections of sharded weights wait for
        # each other, so that none may have another's.
        keeps = backend.name == native.name and not buckets[0].placements
        stats = kept.stats if keeps else None
        if stats is None:
            stats = torch.zeros(len(Statistic), rows[-1].stop, dtype=dtype, device=device)
        if keeps:
            kept.stats = stats
        return cls(placed, backend, kept.layout, stats)

    def accumulate(self, *, recording: bool) -> None:
        self.pending = [
            self.backend.accumulate(bucket, self.stats, recording=recording)
            for bucket in self.buckets
        ]

    def total(self) -> Tensor:
        if self.layout is None:
            return self.stats.new_empty(len(Statistic) + 1, 0)
        totals: Tensor = self._arithmetic.total(self.stats, self.layout)
        return totals

    def finish(self, totals: Tensor) -> None:
        """Decide and apply; `totals` are those of all processes."""
        if self.layout is not None:
            decay = self._decays()
            self.decision = self._arithmetic.decide(self.stats, totals, self.layout, *decay)
        for bucket, state in zip(self.buckets, self.pending, strict=True):
            self.backend.apply(bucket, self.stats, self.decision, state)

    def record(self) -> list[StepRecord]:
        if self.layout is None or self.decision is None:
            return []
        totals, decision = self.total(), self.decision
        # Whoever reads a record knows a sharded weight as a whole, not by its part.
        params = [placement.param for placement in self.placements()]
        if not params:
            params = [
                param for bucket in self.buckets for param in bucket.params[: bucket.matrices]
            ]
            # Sized anew: a backend may have learnt step·w after the decision, which does without.
            views, decays = decision.views, self._decays()
            shift = projection.shift_rows(self.stats, totals, self.layout, views, *decays)
            decision = Decision(views, shift)
        return [projection.record(params, self.stats, totals, self.layout, decision)]

    @property
    def _arithmetic(self) -> Any:
        # By name: torch.compile cannot tell whether two modules are equal.
        decisions = {native.name: native_decision, cuda_triton.name: cuda_decision}
        return decisions.get(self.backend.name, projection)

    def _decays(self) -> tuple[Tensor, Tensor]:
        """What weight decay takes of each weight that is not projected, and that is."""
        rules = [(bucket.matrices, bucket.rule) for bucket in self.buckets]
        return (
            _per_weight([(n, rule.decay) for n, rule in rules], self.stats),
            _per_weight([(n, rule.decay * rule.wd_ratio) for n, rule in rules], self.stats),
        )

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


def _keep(buckets: list[Bucket], dtype: torch.dtype, device: torch.device, memory: Memory) -> _Kept:
    """What this section keeps, made now if it is new."""
    options = [(bucket.rule.delta, bucket.rule.eps, bucket.matrices) for bucket in buckets]
    key = (*options, *(bucket.key for bucket in buckets), dtype, device)
    # A compiled step keeps nothing: the tensors it builds belong to its graph.
    compiling = torch.compiler.is_compiling()
    if not compiling and key in memory.sections:
        return memory.sections[key]
    extents = [extent for bucket in buckets for extent in bucket.extents]
    layout = None
    if extents:
        deltas = [delta for delta, _, n in options for _ in range(n)]
        eps = [eps for _, eps, n in options for _ in range(n)]
        layout = Layout.build(extents, deltas, eps, dtype=dtype, device=device)
    kept = _Kept(layout, [{} for _ in buckets])
    if not compiling:
        if len(memory.sections) >= _KEPT_SECTIONS + 2 * memory.in_step:
            memory.sections.clear()
        memory.sections[key] = kept
    return kept


def _per_weight(values: list[tuple[int, Scalar]], like: Tensor) -> Tensor:
    # Filled on the device: a copy from the host would have to be waited for.
    parts = [
        value.to(like, non_blocking=True).reshape(1).expand(count)
        if isinstance(value, Tensor)
        else like.new_full((count,), value)
        for count, value in values
        if count
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
