"""CUDA's fast path: Triton kernels over a table of addresses, a few launches for all weights.

Nothing waits for the device. Weights are written by the view they had in the last step, before
this step's decision is known, and repaired where it turns out otherwise; the device looks at the
decision itself, so launches depend neither on it nor on the number of weights. See docs/cuda.md.
"""

from __future__ import annotations

import importlib.util
import math
from array import array
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate as running_sum
from itertools import chain
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, Rule
from ..projection import Decision, Statistic
from .row_major import are_row_major
from .scalars import adam_scalars

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal", "run_kernel"]

name = "cuda_triton"
chunk_elements = None

_DEVICE = "cuda"
# Tensor cores play no part, but bfloat16 conversions do: Ampere is the first to have them.
_CAPABILITY = (8, 0)
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

# As in cuda_kernels.py.
_ADAM, _MOMENTUM, _PLAIN = range(3)
_FROM_ARGUMENTS, _FROM_COUNTS, _FROM_TABLE = range(3)
_UNKNOWN = 3
_NARROWEST = 4
_MOST_ROWS = 32
_FIELDS = 5
# Elements of a tile: the larger where there are rows that the smaller would have to split. More
# would not fit into a processor's registers, nor would as many in what is not aligned.
_TILES = (4096, 8192)
# 16 elements of each tensor a thread.
_WARP_ELEMENTS = 512
# Elements between which a tensor's rows must begin to be loaded four at a time.
_VECTOR = 4
_ALIGNMENT = 16
_EACH_WIDTH_FROM = 8
# Whether aligned, whether with rows; in the order of the table of tasks.
_KINDS = ((True, False), (True, True), (False, True), (False, False))
# Parts whose sums are added at a time.
_PARTS = 1024
# With fewer programs than this, some of the largest GPUs' processors would have none.
_PROGRAMS = 2048
_MOST_TASKS = 32

# Tables that a captured CUDA graph reads each time it is replayed, which may be as long as the
# process lives: a graph does not tell when it is gone.
_CAPTURED: list[Any] = []


@dataclass(frozen=True)
class _Launch:
    """A run of tasks: `[begin, end)`, and those of weights with rows in it.

    Attributes:
        aligned: whether elements may be loaded four at a time.
        tile: elements of a tile.
        widths: the set of the tiles' log2 widths, as bits.
    """

    begin: int
    end: int
    begin_matrices: int
    end_matrices: int
    aligned: bool
    tile: int
    widths: int

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "ALIGNED": self.aligned,
            "TILE": self.tile,
            "WIDTHS": self.widths,
            "num_warps": self.tile // _WARP_ELEMENTS,
        }


@dataclass
class _Plan:
    """What a bucket needs in every step and only its shapes determine, and what it remembers.

    Attributes:
        tasks: (T, 4) int32: weight, row, part, slot. Aligned vectors, aligned matrices,
            unaligned matrices, unaligned vectors, in this order.
        launches: by alignment, what one launch works on.
        weights: (W, 5) int64: columns, rows, first row, log2 of the tile's width, whether its rows
            are whole on this process, so that their sums need not be added to others'.
        splits: (S, 3) int64, the rows in parts: place, first slot, number of parts.
        guess: (W,) int8, the views of the last step; `_UNKNOWN` before the first.
        done: (T,) int8, the view that all rows of a task were written as.
        written: (R,) the shift that each row was written with.
        written_as: (R,) int8, the view that each row was written as.
        partials: (5, slots) sums of the parts of rows that are split.
        host_addresses: what `addresses` holds.
        addresses: (W, 5) int64: weight, gradient, first moment, second moment, step count.
    """

    tasks: Tensor
    launches: list[_Launch]
    weights: Tensor
    splits: Tensor
    guess: Tensor
    done: Tensor
    written: Tensor
    written_as: Tensor
    partials: Tensor
    host_addresses: array[int] = field(default_factory=lambda: array("q"))
    addresses: Tensor | None = None


@dataclass(frozen=True)
class _Pending:
    plan: _Plan
    arguments: dict[str, Any]


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    param, rule = bucket.params[0], bucket.rule
    if param.device.type != _DEVICE:
        return f"is for CUDA, not {param.device.type}"
    if param.dtype not in _DTYPES or bucket.grads[0].dtype != param.dtype:
        return f"has no kernel for {param.dtype} weights with {bucket.grads[0].dtype} gradients"
    if any(moment[0].dtype != torch.float32 for moment in bucket.moments):
        return f"needs state in float32, not {bucket.moments[0][0].dtype}"
    if isinstance(rule, AdamRule) and any(isinstance(b, Tensor) for b in (rule.beta1, rule.beta2)):
        return "takes betas as floats only"
    if isinstance(rule.lr, Tensor) and rule.lr.device != param.device:
        return f"takes lr as a float or as a tensor on {param.device}, not on {rule.lr.device}"
    if type(param) not in (Tensor, torch.nn.Parameter):
        return f"reads memory that a {type(param).__name__} may not have"
    if not are_row_major(param, bucket.grads[0], *(moment[0] for moment in bucket.moments)):
        return "needs weight, gradient and state in the same dense, row-major layout"
    if _counts_on_device(bucket):
        counted = {(step.device, step.dtype) for step in bucket.state_steps}
        if counted != {(param.device, torch.float32)}:
            return f"needs all step counts on {param.device} in float32"
    return _missing(param.device)


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> _Pending:
    """Advance the moments, write statistics and, by the last step's views, weights."""
    del recording  # the fifth statistic costs no traffic
    plan = _refresh(bucket)
    arguments = _step_arguments(bucket, plan)
    own = stats[:, bucket.rows]
    for launch in plan.launches:
        run_kernel(
            "accumulate",
            (launch.end - launch.begin,),
            stats.device,
            first_task=launch.begin,
            stats=own,
            stride=own.stride(0),
            partials=plan.partials,
            slots=plan.partials.shape[1],
            **launch.constants,
            **_moment_arguments(bucket.rule),
            **arguments,
        )
    if len(plan.splits):
        run_kernel(
            "add_parts",
            (len(plan.splits), len(Statistic)),
            stats.device,
            splits=plan.splits,
            partials=plan.partials,
            slots=plan.partials.shape[1],
            stats=own,
            stride=own.stride(0),
            BLOCK=_PARTS,
        )
    # What autograd goes by to find that a tensor it saved has changed.
    torch.autograd.graph.increment_version([*bucket.params, *chain(*bucket.moments)])
    return _Pending(plan, arguments)


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, pending: _Pending) -> None:
    """Write the weights that were deferred or written by a guess that proved wrong."""
    if decision is None or not bucket.matrices:
        return
    views, plan = decision.views, pending.plan
    for launch in plan.launches:
        begin, end = launch.begin_matrices, launch.end_matrices
        if begin == end:
            continue
        # One task a program while there are few, so that all processors have work; runs of them
        # where there are many, since most have nothing to do but find that out.
        chunk = min(1 << ((end - begin) // _PROGRAMS).bit_length(), _MOST_TASKS)
        run_kernel(
            "apply",
            (-(-(end - begin) // chunk),),
            stats.device,
            first_task=begin,
            end_task=end,
            channel=views.channel[bucket.weights].view(torch.uint8),
            layer=views.layer[bucket.weights].view(torch.uint8),
            shifts=decision.shift[bucket.rows],
            CHUNK=chunk,
            **launch.constants,
            **pending.arguments,
        )


@cache
def _missing(device: torch.device) -> str | None:
    """What this machine lacks to run the kernels on the device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed"
    if device.type == "cuda":
        if torch.version.hip:
            return "is for NVIDIA's GPUs, not for ROCm"
        capability = torch.cuda.get_device_capability(device)
        if capability < _CAPABILITY:
            have, need = (".".join(map(str, c)) for c in (capability, _CAPABILITY))
            return f"needs compute capability {need}; {device} has {have}"
    try:
        _kernels()
        if device.type == "cuda":
            from triton.runtime import driver  # noqa: PLC0415  # triton loads only where it is used

            # Builds what every launch goes through; this fails where a compiler is missing.
            driver.active.get_current_target()
    except Exception as error:  # whatever it is, there is another backend
        return f"could not be loaded ({type(error).__name__}: {error})"
    return None


@cache
def _kernels(kernel: str = "accumulate") -> ModuleType:
    """The module of a kernel."""
    # Not at the top: importing hf_adamp must not import triton.
    from . import cuda_decision_kernels, cuda_kernels  # noqa: PLC0415

    return cuda_decision_kernels if kernel in cuda_decision_kernels.__all__ else cuda_kernels


def run_kernel(kernel: str, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Run a kernel on the device's current stream."""
    current: AbstractContextManager[Any] = (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    )
    with current:
        getattr(_kernels(kernel), kernel)[grid](**arguments)


def _plan(bucket: Bucket, *, aligned: bool) -> _Plan:
    device = bucket.params[0].device
    rows = [p.shape[0] if i < bucket.matrices else 1 for i, p in enumerate(bucket.params)]
    columns = [p.numel() // r if r else 0 for p, r in zip(bucket.params, rows, strict=True)]
    first_rows = list(running_sum(rows[: bucket.matrices], initial=0))
    row_count = first_rows[bucket.matrices]
    first_rows[bucket.matrices :] = [-1] * (len(rows) - bucket.matrices)

    kinds = [(aligned and c % _VECTOR == 0, i < bucket.matrices) for i, c in enumerate(columns)]
    tiles = [_tile(columns[: bucket.matrices]) if kind[0] else _TILES[0] for kind in kinds]
    powers = [_power(count, tile) for count, tile in zip(columns, tiles, strict=True)]
    runs: dict[tuple[bool, bool], list[tuple[int, ...]]] = {kind: [] for kind in _KINDS}
    splits: list[tuple[int, int, int]] = []
    slots = 0
    for weight, kind in enumerate(kinds):
        parts = -(-columns[weight] // tiles[weight])
        split = kind[1] and parts > 1
        own = _tasks(rows[weight], columns[weight], tiles[weight], slots if split else -1)
        runs[kind] += [(weight, *task) for task in own]
        if split:
            for row in range(rows[weight]):
                splits.append((first_rows[weight] + row, slots, parts))
                slots += parts

    tasks = array("i", chain.from_iterable(chain.from_iterable(runs.values())))
    whole = [not (p and p.row_slots) for p in bucket.placements or [None] * len(rows)]
    traits = zip(columns, rows, first_rows, powers, whole, strict=True)
    return _Plan(
        tasks=_upload(tasks, device).view(-1, 4),
        launches=_launches([len(run) for run in runs.values()], kinds, tiles, powers),
        weights=_upload(array("q", chain.from_iterable(traits)), device).view(-1, 5),
        splits=_upload(array("q", chain.from_iterable(splits)), device).view(-1, 3),
        guess=torch.full((len(rows),), _UNKNOWN, dtype=torch.int8, device=device),
        done=torch.zeros(len(tasks) // 4, dtype=torch.int8, device=device),
        written=torch.zeros(row_count, device=device),
        written_as=torch.zeros(row_count, dtype=torch.int8, device=device),
        partials=torch.zeros(len(Statistic), slots, device=device),
    )


def _launches(
    counts: list[int], kinds: list[tuple[bool, bool]], tiles: list[int], powers: list[int]
) -> list[_Launch]:
    """One for what is aligned and one for what is not, of those that have tasks."""
    zero, matrices, unaligned, unaligned_vectors, end = running_sum(counts, initial=0)
    launches = []
    for aligned, bounds in (
        (True, (zero, unaligned, matrices, unaligned)),
        (False, (unaligned, end, unaligned, unaligned_vectors)),
    ):
        own = [weight for weight, kind in enumerate(kinds) if kind[0] == aligned]
        if bounds[0] < bounds[1]:
            widths = sum(1 << power for power in {powers[weight] for weight in own})
            launches.append(_Launch(*bounds, aligned, tiles[own[0]], widths))
    return launches


def _tile(columns: Iterable[int]) -> int:
    small, large = _TILES
    return large if any(small < count <= large for count in columns) else small


def _power(columns: int, tile: int) -> int:
    """The log2 width of the narrowest tile that takes a row, or a part of it, at once."""
    power = max(_NARROWEST, (min(columns, tile) - 1).bit_length())
    # Every width is compiled by itself; among narrow ones every other will do.
    return power + power % 2 if power < _EACH_WIDTH_FROM else power


def _tasks(rows: int, columns: int, tile: int, slot: int) -> Iterator[tuple[int, int, int]]:
    """Row, part and, for a part of a row with statistics, the slot of its sums."""
    parts = -(-columns // tile)
    at_once = min(tile >> _power(columns, tile), _MOST_ROWS)
    for row in range(0, rows, at_once):
        for part in range(parts):
            yield row, part, slot + row * parts + part if slot >= 0 else -1


def _upload(values: array[int] | array[float], device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    dtype = {"i": torch.int32, "q": torch.int64, "f": torch.float32}[values.typecode]
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    host = torch.frombuffer(values, dtype=dtype)
    if device.type != "cuda":
        return host.clone()
    # Fresh pinned memory every time: the last copy may not have been read yet, and the allocator
    # hands it out again only once it has.
    pinned = host.pin_memory()
    copy = pinned.to(device, non_blocking=True)
    if torch.cuda.is_current_stream_capturing():
        _CAPTURED.append((pinned, copy))
    return copy


def _refresh(bucket: Bucket) -> _Plan:
    """The bucket's plan, its addresses up to date; gradients seldom stay where they were."""
    device = bucket.params[0].device
    table = array("q", bytes(8 * _FIELDS * len(bucket.params)))
    for index, tensors in enumerate((bucket.params, bucket.grads, *bucket.moments)):
        table[index::_FIELDS] = array("q", map(Tensor.data_ptr, tensors))
    if _counts_on_device(bucket):
        table[_FIELDS - 1 :: _FIELDS] = array("q", map(Tensor.data_ptr, bucket.state_steps))
    plan: _Plan | None = bucket.memo.get(name)
    if plan is None or table != plan.host_addresses:
        elements = chain.from_iterable(table[index::_FIELDS] for index in range(_FIELDS - 1))
        aligned = all(address % _ALIGNMENT == 0 for address in elements)
        kept = f"{name} {aligned=}"
        plan = bucket.memo.get(kept) or _plan(bucket, aligned=aligned)
        bucket.memo[name] = bucket.memo[kept] = plan
        plan.addresses, plan.host_addresses = _upload(table, device), table
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _CAPTURED.append(plan)
    return plan


def _counts_on_device(bucket: Bucket) -> bool:
    rule = bucket.rule
    if not isinstance(rule, AdamRule):
        return False
    return rule.capturable or any(map(attrgetter("is_cuda"), bucket.state_steps[:1]))


def _scalars(bucket: Bucket) -> dict[str, Any]:
    """The kernels' arguments on `lr / (1 − β₁ᵗ)` and `1 / √(1 − β₂ᵗ)`.

    The same for all weights they are arguments, else a table; where counts must not be read back
    the kernels compute them. A learning rate on the device multiplies there what is given for 1.
    """
    rule = _with_float_lr(bucket.rule)
    given: dict[str, Any] = {
        "lr": bucket.rule.lr if isinstance(bucket.rule.lr, Tensor) else None,
        "LR_ON_DEVICE": isinstance(bucket.rule.lr, Tensor),
        "table": None,
        "SOURCE": _FROM_ARGUMENTS,
        "step_size": rule.lr,
        "inverse_root": 1.0,
        "log_beta1": 0.0,
        "log_beta2": 0.0,
    }
    if not isinstance(rule, AdamRule):
        return given
    if _counts_on_device(bucket):
        logs = [math.log(beta) if beta else -math.inf for beta in (rule.beta1, rule.beta2)]
        return given | {"SOURCE": _FROM_COUNTS, "log_beta1": logs[0], "log_beta2": logs[1]}
    pairs: list[tuple[Any, Any]] = list(zip(*adam_scalars(rule, bucket.state_steps), strict=True))
    if len(set(pairs)) == 1:
        return given | {"step_size": pairs[0][0], "inverse_root": 1 / pairs[0][1]}
    table = array("f", chain.from_iterable((size, 1 / root) for size, root in pairs))
    return given | {"SOURCE": _FROM_TABLE, "table": _upload(table, bucket.params[0].device)}


def _with_float_lr(rule: Rule) -> Rule:
    return replace(rule, lr=1.0) if isinstance(rule.lr, Tensor) else rule


def _step_arguments(bucket: Bucket, plan: _Plan) -> dict[str, Any]:
    """What both kernels take: where things are, and how a step comes from the moments."""
    rule = bucket.rule
    momentum = rule.beta1 if isinstance(rule, AdamRule) else rule.momentum
    kind = _ADAM if isinstance(rule, AdamRule) else _MOMENTUM if bucket.moments else _PLAIN
    of_grad = {_ADAM: 1 - momentum, _MOMENTUM: 1.0, _PLAIN: 1 - getattr(rule, "dampening", 0.0)}
    return {
        "tasks": plan.tasks,
        "weights": plan.weights,
        "addresses": plan.addresses,
        "guesses": plan.guess,
        "written": plan.written,
        "written_as": plan.written_as,
        "done": plan.done,
        "of_moment": float(momentum) if rule.nesterov else 1.0,
        "of_grad": float(of_grad[kind]),
        "eps": float(rule.eps),
        "sign": -1.0 if rule.maximize else 1.0,
        "TYPE": getattr(_kernels().tl, _DTYPES[bucket.params[0].dtype]),
        "KIND": kind,
        "AHEAD": rule.nesterov,
        **_scalars(bucket),
    }


def _moment_arguments(rule: Rule) -> dict[str, float]:
    """How moments advance, and what the write by the guess needs."""
    adam = isinstance(rule, AdamRule)
    keeps = (rule.beta1, rule.beta2) if isinstance(rule, AdamRule) else (rule.momentum, 0.0)
    dampening = 0.0 if isinstance(rule, AdamRule) else rule.dampening
    decay = _with_float_lr(rule).decay
    return {
        "keep1": float(keeps[0]),
        "add1": float(1 - keeps[0] if adam else 1 - dampening),
        "keep2": float(keeps[1]),
        "add2": float(1 - keeps[1]),
        "decay": float(decay),
        "projected_decay": float(decay * rule.wd_ratio),
        "delta": float(rule.delta),
    }
