"""The step itself: accumulate → decide → apply, for the weights of all param groups together.

A *section* is what is decided at once: all weights of one device, precision and backend, or on a
CPU a chunk of them that stays in cache between the three stages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .projection import Layout, Statistic, StepRecord

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
    recording: bool = False,
) -> list[StepRecord]:
    """Update the weights of all buckets.

    Args:
        buckets: one a param group; devices, dtypes and shapes may be mixed in each.
        flags: what each bucket asks of its backend.
        sections: what is kept from step to step; None keeps nothing.
        recording: whether to derive records, which costs one more statistic a row.

    Returns:
        One record for every section that has weights with rows, if recording.

    Raises:
        RuntimeError: if a flag asks for a backend that cannot serve a weight. Raised before
            anything is changed.
    """
    parts: dict[Any, list[Bucket]] = defaultdict(list)
    for bucket, flag in zip(buckets, flags, strict=True):
        for part in _split_by_kind(bucket):
            param = part.params[0]
            backend = choose(part, flag)
            parts[backend, param.device, working_dtype(param.dtype)].append(part)

    for bucket in buckets:
        _count_step(bucket.state_steps)
    records = []
    for (backend, _, dtype), alike in parts.items():
        for chunk in _chunks(alike, backend.chunk_elements):
            records += _run_section(chunk, backend, dtype, sections, recording=recording)
    return records


def _count_step(state_steps: Sequence[Tensor]) -> None:
    if not state_steps:
        return
    if state_steps[0].is_cpu and not torch.compiler.is_compiling():
        # A Python 1 would be wrapped into a tensor again for every weight.
        torch._foreach_add_(list(state_steps), torch.tensor(1.0), alpha=1.0)
    else:
        torch._foreach_add_(list(state_steps), 1)


def _run_section(
    buckets: list[Bucket],
    backend: Backend,
    dtype: torch.dtype,
    sections: SectionCache | None,
    *,
    recording: bool,
) -> list[StepRecord]:
    device = buckets[0].params[0].device
    kept = _keep(buckets, dtype, device, sections)
    weights = _running_slices(bucket.matrices for bucket in buckets)
    rows = _running_slices(_row_count(bucket) for bucket in buckets)
    buckets = [
        replace(bucket, weights=w, rows=r, memo=memo)
        for bucket, w, r, memo in zip(buckets, weights, rows, kept.memos, strict=True)
    ]
    stats = torch.zeros(len(Statistic), rows[-1].stop, dtype=dtype, device=device)

    pending = [backend.accumulate(bucket, stats, recording=recording) for bucket in buckets]
    decision, layout = None, kept.layout
    if layout is not None:
        decision = projection.decide(stats, layout, *_decays(buckets, stats))
    for bucket, state in zip(buckets, pending, strict=True):
        backend.apply(bucket, stats, decision, state)

    if not recording or layout is None or decision is None:
        return []
    # Sized anew: a backend may have learnt step·w after the decision, which does not need it.
    shift = projection.shift_rows(stats, layout, decision.views, *_decays(buckets, stats))
    params = [param for bucket in buckets for param in bucket.params[: bucket.matrices]]
    return [projection.record(params, stats, layout, decision.views, shift)]


def _running_slices(counts: Iterable[int]) -> list[slice]:
    ends = list(running_sum(counts, initial=0))
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _row_count(bucket: Bucket) -> int:
    return sum(param.shape[0] for param in bucket.params[: bucket.matrices])


def _split_by_kind(bucket: Bucket) -> Iterator[Bucket]:
    """Parts that one backend can serve alike, weights with rows first in each."""
    for indices in _indices_by_kind(bucket):
        rows = [index for index in indices if projection.has_rows(bucket.params[index].shape)]
        with_rows = set(rows)
        others = [index for index in indices if index not in with_rows]
        yield replace(bucket.take(rows + others), matrices=len(rows))


def _indices_by_kind(bucket: Bucket) -> Iterable[Sequence[int]]:
    """The weights, grouped by what decides which backend can serve them."""
    # Passes of C over each list, not a Python loop over weights, of which there are thousands.
    traits = [
        list(map(attrgetter(trait), tensors))
        for tensors, trait in (
            *((bucket.params, trait) for trait in ("__class__", "device", "dtype")),
            (bucket.grads, "dtype"),
        )
    ]
    tensors = (bucket.params, bucket.grads, *bucket.moments)
    contiguous = all(all(map(Tensor.is_contiguous, alike)) for alike in tensors)
    if contiguous and all(len(set(trait)) <= 1 for trait in traits):
        return [range(len(bucket.params))] if bucket.params else []
    kinds: dict[Any, list[int]] = defaultdict(list)
    for index, kind in enumerate(zip(*traits, map(are_row_major, *tensors), strict=True)):
        kinds[kind].append(index)
    return kinds.values()


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
    key = (tuple(options), tuple(shapes), dtype, device)
    # A compiled step keeps nothing: the tensors it builds belong to its graph.
    if torch.compiler.is_compiling():
        sections = None
    if sections is not None and key in sections:
        return sections[key]
    layout = Layout.build(
        [shape for own, (_, _, n) in zip(shapes, options, strict=True) for shape in own[:n]],
        [delta for delta, _, n in options for _ in range(n)],
        [eps for _, eps, n in options for _ in range(n)],
        dtype=dtype,
        device=device,
    )
    kept = _Kept(layout if layout.rows else None, [{} for _ in buckets])
    if sections is not None:
        if len(sections) >= _KEPT_SECTIONS:
            sections.clear()
        sections[key] = kept
    return kept


def _decays(buckets: list[Bucket], like: Tensor) -> tuple[Tensor, Tensor]:
    """(W,) what weight decay takes from each weight, and the same where it is projected."""
    rules = [(bucket.matrices, bucket.rule) for bucket in buckets]
    return (
        _per_weight([(n, rule.decay) for n, rule in rules], like),
        _per_weight([(n, rule.decay * rule.wd_ratio) for n, rule in rules], like),
    )


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
