"""The CPU's fast path: csrc/native.c, one pass over memory for all weights of a bucket.

The kernel is compiled when the package is installed, if there is a C compiler, and loaded with
ctypes. It writes weights by the view they had in the last step, before this step's decision is
known, and repairs those for which it turns out otherwise.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, working_dtype
from ..projection import Decision, Statistic, View
from .native_library import (
    SEGMENT,
    TASK_FIELDS,
    TILE,
    WEIGHT_FIELDS,
    NativeBuffers,
    NativeRule,
    has_float16,
    load,
)
from .row_major import are_row_major
from .scalars import adam_scalars

__all__ = ["accumulate", "apply", "chunk_elements", "count", "name", "refusal"]

name = "native"
chunk_elements = None

_UNKNOWN = 3
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ADAM, _MOMENTUM, _PLAIN = range(3)
_is_cpu, _dtype = attrgetter("is_cpu"), attrgetter("dtype")
# About 100 microseconds of work: enough to make taking a task cheap, little enough to balance.
_TASK_ELEMENTS = 65536
# Below this, waking a second thread takes longer than the work.
_PARALLEL_ELEMENTS = 1 << 17


@dataclass
class _Plan:
    """What a bucket needs in every step and only its shapes determine, and what it remembers.

    Attributes:
        tasks: six int64 a task, see `struct task`.
        task_count: how many tasks.
        elements: of all weights.
        guess: (weights,) int8, the views that are expected; `_UNKNOWN` before the first step.
        guessable: (weights,) bool, whether whole rows are here, so that a row can be written
            before processes have added up their sums.
        written: (rows,) the shift that each row was written with.
        written_as: int8, the view that each tile of a row was written as.
        partials: sums of the parts of rows that are split.
        table: seven int64 a weight, see `struct weight`, as of the last step.
        place: `Bucket.place` of that step.
    """

    tasks: array[int]
    task_count: int
    elements: int
    guess: Tensor
    guessable: Tensor
    written: Tensor
    written_as: Tensor
    partials: Tensor
    table: array[int]
    place: Hashable = None


@dataclass
class _Pending:
    plan: _Plan
    scalars: array[float]
    rule: NativeRule
    buffers: NativeBuffers
    threads: int


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    param, rule = bucket.params[0], bucket.rule
    if param.device.type != "cpu":
        return f"is for the CPU, not {param.device.type}"
    library, reason = load()
    if library is None:
        return reason
    if param.dtype not in _DTYPES or bucket.grads[0].dtype != param.dtype:
        return f"has no kernel for {param.dtype} weights with {bucket.grads[0].dtype} gradients"
    if param.dtype == torch.float16 and not has_float16():
        return "was compiled without float16"
    if any(moment[0].dtype != working_dtype(param.dtype) for moment in bucket.moments):
        return f"needs state in {working_dtype(param.dtype)}, not {bucket.moments[0][0].dtype}"
    betas = (rule.beta1, rule.beta2) if isinstance(rule, AdamRule) else ()
    if any(isinstance(option, Tensor) for option in (rule.lr, *betas)):
        return "takes lr and betas as floats only"
    if type(param) not in (Tensor, torch.nn.Parameter):
        return f"reads memory that a {type(param).__name__} may not have"
    if not are_row_major(param, bucket.grads[0], *(moment[0] for moment in bucket.moments)):
        return "needs weight, gradient and state in the same dense, row-major layout"
    return None


def count(state_steps: list[Tensor]) -> bool:
    """Add one to step counts that lie in memory of their own; false, and nothing, elsewhere.

    torch's operators dispatch once a tensor, which for thousands of weights takes a good part of
    the time of a step.
    """
    library, _ = load()
    apart = all(map(_is_cpu, state_steps)) and {*map(_dtype, state_steps)} == {torch.float32}
    if library is None or not apart or {*map(type, state_steps)} != {Tensor}:
        return False
    addresses = array("q", map(Tensor.data_ptr, state_steps))
    library.hf_adamp_count(addresses.buffer_info()[0], len(addresses))
    torch.autograd.graph.increment_version(state_steps)
    return True


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> _Pending:
    """Advance the moments, write statistics and, by the last step's views, weights."""
    del recording  # the fifth statistic costs nothing here
    plan = bucket.memo.get("plan")
    if plan is None:
        plan = bucket.memo["plan"] = _plan(bucket)
    own = stats[:, bucket.rows]
    _fill_table(bucket, plan)
    pending = _Pending(
        plan=plan,
        scalars=_scalar_table(bucket),
        rule=_rule(bucket),
        buffers=NativeBuffers(
            own.data_ptr(),
            own.stride(0),
            plan.written.data_ptr(),
            plan.written_as.data_ptr(),
            plan.partials.data_ptr(),
        ),
        threads=torch.get_num_threads() if plan.elements >= _PARALLEL_ELEMENTS else 1,
    )
    _call("hf_adamp_accumulate", pending, plan.guess.data_ptr())
    # What autograd goes by to find that a tensor it saved has changed. It never saves moments.
    torch.autograd.graph.increment_version(bucket.params)
    return pending


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, pending: _Pending) -> None:
    """Write the weights that were deferred or written by a guess that proved wrong."""
    del stats
    if decision is None or not bucket.matrices:
        return
    plan = pending.plan
    views = decision.views.codes[bucket.weights]
    shift = decision.shift[bucket.rows].contiguous()
    _call("hf_adamp_apply", pending, views.data_ptr(), shift.data_ptr())
    if bucket.rule.scale_invariant == "auto":
        # A layer view seldom lasts, and to defer a weight in vain costs more than to repair it.
        views = views * (views == View.CHANNEL)
    plan.guess[: bucket.matrices] = views
    if bucket.placements:
        plan.guess[~plan.guessable] = _UNKNOWN


def _call(function: str, pending: _Pending, *addresses: int) -> None:
    library, _ = load()
    getattr(library, function)(
        pending.plan.tasks.buffer_info()[0],
        pending.plan.task_count,
        pending.plan.table.buffer_info()[0],
        pending.scalars.buffer_info()[0],
        ctypes.byref(pending.rule),
        *addresses,
        ctypes.byref(pending.buffers),
        pending.threads,
    )


def _plan(bucket: Bucket) -> _Plan:
    rows, columns, first_rows, first_tiles = [], [], [], [0]
    placements = bucket.placements or [None] * len(bucket.params)
    row_count = 0
    for index, param in enumerate(bucket.params):
        has_rows = index < bucket.matrices
        rows.append(param.shape[0] if has_rows else 1)
        columns.append(param.numel() // rows[-1] if rows[-1] else 0)
        first_rows.append(row_count if has_rows else -1)
        row_count += rows[-1] if has_rows else 0
        tiles = rows[-1] * math.ceil(columns[-1] / TILE) if has_rows else 0
        first_tiles.append(first_tiles[-1] + tiles)
    tasks = array("q", chain.from_iterable(_tasks(rows, columns)))
    slots = max([*tasks[5::TASK_FIELDS], -1]) + 1
    table = array("q", bytes(8 * WEIGHT_FIELDS * len(rows)))
    for field, values in ((4, columns), (5, first_rows), (6, first_tiles[:-1])):
        table[field::WEIGHT_FIELDS] = array("q", values)
    return _Plan(
        tasks=tasks,
        task_count=len(tasks) // TASK_FIELDS,
        elements=sum(map(math.prod, zip(rows, columns, strict=True))),
        guess=torch.full((len(rows),), _UNKNOWN, dtype=torch.int8),
        guessable=torch.tensor([not (p and p.row_slots) for p in placements], dtype=torch.bool),
        written=torch.zeros(row_count),
        written_as=torch.zeros(first_tiles[-1], dtype=torch.int8),
        partials=torch.zeros(slots, len(Statistic)),
        table=table,
    )


def _tasks(rows: list[int], columns: list[int]) -> Iterator[tuple[int, ...]]:
    """Weight, row, rows, column, columns and, for a part of a row, the slot of its sums."""
    slot = 0
    for weight, (row_count, width) in enumerate(zip(rows, columns, strict=True)):
        if width > SEGMENT:
            for row in range(row_count):
                for column in range(0, width, SEGMENT):
                    yield weight, row, 1, column, min(SEGMENT, width - column), slot
                    slot += 1
        elif width:
            step = max(1, _TASK_ELEMENTS // width)
            for row in range(0, row_count, step):
                yield weight, row, min(step, row_count - row), 0, width, -1


def _fill_table(bucket: Bucket, plan: _Plan) -> None:
    """Put this step's addresses into the plan's table; gradients are new in every step."""
    moved = bucket.place is None or bucket.place != plan.place
    fields = {1: bucket.grads}
    if moved:
        fields |= {0: bucket.params, **dict(enumerate(bucket.moments, start=2))}
    for field, tensors in fields.items():
        plan.table[field::WEIGHT_FIELDS] = array("q", map(Tensor.data_ptr, tensors))
    plan.place = bucket.place


def _scalar_table(bucket: Bucket) -> array[float]:
    rule = bucket.rule
    if not isinstance(rule, AdamRule):
        return array("f", [rule.lr, 0.0] * len(bucket.params))  # type: ignore[list-item]
    step_sizes, roots = adam_scalars(rule, bucket.state_steps)
    inverse: dict[Any, Any] = {root: 1 / root for root in set(roots)}
    pairs: Iterator[tuple[Any, Any]] = zip(step_sizes, map(inverse.get, roots), strict=True)
    return array("f", chain.from_iterable(pairs))


def _rule(bucket: Bucket) -> NativeRule:
    rule = bucket.rule
    common = {
        "dtype": _DTYPES[bucket.params[0].dtype],
        "eps": rule.eps,
        "sign": -1.0 if rule.maximize else 1.0,
        "decay": rule.decay,
        "projected_decay": rule.decay * rule.wd_ratio,
        "delta": rule.delta,
    }
    if isinstance(rule, AdamRule):
        ahead = rule.nesterov
        return NativeRule(
            kind=_ADAM,
            keep1=rule.beta1,
            add1=1 - rule.beta1,
            keep2=rule.beta2,
            add2=1 - rule.beta2,
            of_moment=rule.beta1 if ahead else 1.0,
            of_grad=1 - rule.beta1 if ahead else 0.0,
            **common,
        )
    if not bucket.moments:
        return NativeRule(kind=_PLAIN, of_grad=1 - rule.dampening, **common)
    return NativeRule(
        kind=_MOMENTUM,
        keep1=rule.momentum,
        add1=1 - rule.dampening,
        of_moment=rule.momentum if rule.nesterov else 1.0,
        of_grad=1.0 if rule.nesterov else 0.0,
        **common,
    )
