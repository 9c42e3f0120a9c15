"""The CPU's fast path: csrc/native.c, one pass over memory for all weights of a bucket.

The kernel is compiled when the package is installed, if there is a C compiler, and loaded with
ctypes. It writes weights by the view they had in the last step, before this step's decision is
known, and repairs those for which it turns out otherwise.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, working_dtype
from ..projection import Decision, Statistic
from .row_major import are_row_major
from .scalars import adam_scalars

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal"]

name = "native"
chunk_elements = None

# As in native.c.
_SEGMENT = 32768
_TILE = 1024
_UNKNOWN = 3
_TASK_FIELDS = 6
_WEIGHT_FIELDS = 7
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ADAM, _MOMENTUM, _PLAIN = range(3)
# About 100 microseconds of work: enough to make taking a task cheap, little enough to balance.
_TASK_ELEMENTS = 65536
# Below this, waking a second thread takes longer than the work.
_PARALLEL_ELEMENTS = 1 << 17


class _Rule(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        *(
            (field, ctypes.c_float)
            for field in (
                *("keep1", "add1", "keep2", "add2", "of_moment", "of_grad", "eps", "sign"),
                *("decay", "projected_decay", "delta"),
            )
        ),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("stats", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("written", ctypes.c_void_p),
        ("written_as", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
    ]


@dataclass
class _Plan:
    """What a bucket needs in every step and only its shapes determine, and what it remembers.

    Attributes:
        tasks: six int64 a task, see `struct task`.
        task_count: how many tasks.
        columns: of each weight; for a weight without rows its elements.
        first_rows: place of each weight's rows in the bucket's part of the statistics, or -1.
        first_tiles: place of each weight's tiles in `written_as`.
        elements: of all weights.
        guess: (weights,) int8, the views of the last step; `_UNKNOWN` before the first.
        guessable: (weights,) bool, whether whole rows are here, so that a row can be written
            before processes have added up their sums.
        written: (rows,) the shift that each row was written with.
        written_as: int8, the view that each tile of a row was written as.
        partials: sums of the parts of rows that are split.
    """

    tasks: array[int]
    task_count: int
    columns: array[int]
    first_rows: array[int]
    first_tiles: array[int]
    elements: int
    guess: Tensor
    guessable: Tensor
    written: Tensor
    written_as: Tensor
    partials: Tensor


@dataclass
class _Pending:
    plan: _Plan
    weights: array[int]
    scalars: array[float]
    rule: _Rule
    buffers: _Buffers
    threads: int


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    param, rule = bucket.params[0], bucket.rule
    if param.device.type != "cpu":
        return f"is for the CPU, not {param.device.type}"
    library, reason = _load()
    if library is None:
        return reason
    if param.dtype not in _DTYPES or bucket.grads[0].dtype != param.dtype:
        return f"has no kernel for {param.dtype} weights with {bucket.grads[0].dtype} gradients"
    if param.dtype == torch.float16 and not _has_float16():
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


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> _Pending:
    """Advance the moments, write statistics and, by the last step's views, weights."""
    del recording  # the fifth statistic costs nothing here
    plan = bucket.memo.get("plan")
    if plan is None:
        plan = bucket.memo["plan"] = _plan(bucket)
    own = stats[:, bucket.rows]
    pending = _Pending(
        plan=plan,
        weights=_weight_table(bucket, plan),
        scalars=_scalar_table(bucket),
        rule=_rule(bucket),
        buffers=_Buffers(
            own.data_ptr(),
            own.stride(0),
            plan.written.data_ptr(),
            plan.written_as.data_ptr(),
            plan.partials.data_ptr(),
        ),
        threads=torch.get_num_threads() if plan.elements >= _PARALLEL_ELEMENTS else 1,
    )
    _call("hf_adamp_accumulate", pending, plan.guess.data_ptr())
    # What autograd goes by to find that a tensor it saved has changed.
    torch.autograd.graph.increment_version([*bucket.params, *chain(*bucket.moments)])
    return pending


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, pending: _Pending) -> None:
    """Write the weights that were deferred or written by a guess that proved wrong."""
    del stats
    if decision is None or not bucket.matrices:
        return
    plan = pending.plan
    views = decision.views.codes[bucket.weights]
    shift = decision.shift[bucket.rows].contiguous()
    plan.guess[: bucket.matrices] = views
    _call("hf_adamp_apply", pending, plan.guess.data_ptr(), shift.data_ptr())
    plan.guess[~plan.guessable] = _UNKNOWN


def _call(function: str, pending: _Pending, *addresses: int) -> None:
    library, _ = _load()
    getattr(library, function)(
        pending.plan.tasks.buffer_info()[0],
        pending.plan.task_count,
        pending.weights.buffer_info()[0],
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
        tiles = rows[-1] * math.ceil(columns[-1] / _TILE) if has_rows else 0
        first_tiles.append(first_tiles[-1] + tiles)
    tasks = array("q", chain.from_iterable(_tasks(rows, columns)))
    slots = max([*tasks[5::_TASK_FIELDS], -1]) + 1
    return _Plan(
        tasks=tasks,
        task_count=len(tasks) // _TASK_FIELDS,
        columns=array("q", columns),
        first_rows=array("q", first_rows),
        first_tiles=array("q", first_tiles[:-1]),
        elements=sum(map(math.prod, zip(rows, columns, strict=True))),
        guess=torch.full((len(rows),), _UNKNOWN, dtype=torch.int8),
        guessable=torch.tensor([not (p and p.row_slots) for p in placements], dtype=torch.bool),
        written=torch.zeros(row_count),
        written_as=torch.zeros(first_tiles[-1], dtype=torch.int8),
        partials=torch.zeros(slots, len(Statistic)),
    )


def _tasks(rows: list[int], columns: list[int]) -> Iterator[tuple[int, ...]]:
    """Weight, row, rows, column, columns and, for a part of a row, the slot of its sums."""
    slot = 0
    for weight, (row_count, width) in enumerate(zip(rows, columns, strict=True)):
        if width > _SEGMENT:
            for row in range(row_count):
                for column in range(0, width, _SEGMENT):
                    yield weight, row, 1, column, min(_SEGMENT, width - column), slot
                    slot += 1
        elif width:
            step = max(1, _TASK_ELEMENTS // width)
            for row in range(0, row_count, step):
                yield weight, row, min(step, row_count - row), 0, width, -1


def _weight_table(bucket: Bucket, plan: _Plan) -> array[int]:
    def addresses(tensors: list[Tensor]) -> Iterable[int]:
        return map(Tensor.data_ptr, tensors)

    table = array("q", bytes(8 * _WEIGHT_FIELDS * len(bucket.params)))
    fields = (bucket.params, bucket.grads, *bucket.moments)
    for field, tensors in enumerate(fields):
        table[field::_WEIGHT_FIELDS] = array("q", addresses(tensors))
    table[4::_WEIGHT_FIELDS] = plan.columns
    table[5::_WEIGHT_FIELDS] = plan.first_rows
    table[6::_WEIGHT_FIELDS] = plan.first_tiles
    return table


def _scalar_table(bucket: Bucket) -> array[float]:
    rule = bucket.rule
    if not isinstance(rule, AdamRule):
        return array("f", [rule.lr, 0.0] * len(bucket.params))  # type: ignore[list-item]
    pairs: Iterable[tuple[Any, Any]] = zip(*adam_scalars(rule, bucket.state_steps), strict=True)
    return array("f", [value for step_size, root in pairs for value in (step_size, 1 / root)])


def _rule(bucket: Bucket) -> _Rule:
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
        return _Rule(
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
        return _Rule(kind=_PLAIN, of_grad=1 - rule.dampening, **common)
    return _Rule(
        kind=_MOMENTUM,
        keep1=rule.momentum,
        add1=1 - rule.dampening,
        of_moment=rule.momentum if rule.nesterov else 1.0,
        of_grad=1.0 if rule.nesterov else 0.0,
        **common,
    )


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or None and why there is none."""
    path = _find()
    if path is None:
        return None, "was not compiled when hf-adamp was installed (no C compiler)"
    try:
        _share_openmp()
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"could not be loaded ({error})"
    build = (ctypes.c_int64 * 7)()
    library.hf_adamp_build(build)
    expected = (
        8 * _TASK_FIELDS,
        8 * _WEIGHT_FIELDS,
        ctypes.sizeof(_Rule),
        ctypes.sizeof(_Buffers),
        _SEGMENT,
        _TILE,
    )
    if tuple(build[:6]) != expected:
        return None, "was compiled from another version; reinstall hf-adamp"
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    shared: list[Any] = [pointer, integer, pointer, pointer, pointer]
    library.hf_adamp_accumulate.argtypes = [*shared, pointer, pointer, ctypes.c_int32]
    library.hf_adamp_apply.argtypes = [*shared, pointer, pointer, pointer, ctypes.c_int32]
    return library, ""


def _has_float16() -> bool:
    library, _ = _load()
    build = (ctypes.c_int64 * 7)()
    library.hf_adamp_build(build)  # type: ignore[union-attr]
    return bool(build[6])


def _find() -> Path | None:
    folder = Path(__file__).parent
    candidates = (folder / f"_native{end}" for end in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def _share_openmp() -> None:
    """Make torch's OpenMP runtime the one that the kernel's symbols are found in.

    The kernel is linked to none: two runtimes in one process keep two pools of threads, which
    fight over the cores, and only torch's own heeds `torch.set_num_threads`.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for path in sorted(set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", maps))):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        return
