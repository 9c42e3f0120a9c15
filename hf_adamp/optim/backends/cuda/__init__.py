"""CUDA's kernels, in Triton: a few launches for all weights, and nothing waits for the device.

They are the default on Nvidia's GPUs, where the tests have run; elsewhere `fused=True` asks for
them. Without a GPU the tests run them in Triton's interpreter and compile them ahead of time. See
docs/cuda.md.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, reduce
from itertools import chain
from operator import or_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...graphs import is_captured, keep_for_graphs
from ...layout import Piece, Placement, Statistic
from ...projection import Decision, Views, total
from ...rules import AdamRule, Scalar, is_adam, step_scalars
from ..addresses import ROUNDINGS, addresses_of, as_piece, memory_refusal
from ..base import Backend, Candidate, Members, Outcome, Prepared, Step

__all__ = ["TRITON", "Triton"]

logger = logging.getLogger(__name__)

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Elements of a tile, which stay in registers; a row wider than that is walked through. Tiles of
# 4096 move fewer bytes, but so few run side by side that BERT-base took 1.4 times as long (H200).
_TILE = 1024
_NARROWEST = 16
# More of them need more registers for their sums than narrow rows are worth.
_MOST_ROWS = 32
# Eight elements of each tensor a thread.
_WARP_ELEMENTS = 256
# Tasks that a program of `write` looks at: most often it has nothing to do for any of them.
_WRITTEN_TASKS = 4
# Rows that a program of `decide` looks at together.
_DECIDED_ROWS = 1024
# Bytes and elements between which rows must begin to be loaded four elements at a time.
_ALIGNMENT, _VECTOR = 16, 4


class Triton(Backend):
    """Serves a GPU, wherever an address tells all of a weight."""

    name = "triton"
    is_fused = True
    # Torch's operations decide those; they add up in another order than the kernel.
    keeps_vectors_apart = True

    def is_default_for(self, device_type: str) -> bool:
        """Where a GPU has run the tests: on Nvidia's, not on AMD's, which torch calls cuda too."""
        return device_type == "cuda" and torch.version.hip is None

    def refusal(self, candidate: Candidate) -> str | None:
        """Why it cannot serve weights like this, or None where it can."""
        param, rule = candidate.param, candidate.rule
        reason = _device_refusal(param.device)
        if reason is not None:
            return reason
        if param.dtype not in _DTYPES or candidate.grad.dtype != param.dtype:
            return f"has no kernel for {param.dtype} weights with {candidate.grad.dtype} gradients"
        if is_adam(rule):
            if any(isinstance(beta, Tensor) for beta in (rule.beta1, rule.beta2)):
                return "takes betas as floats only"
            if isinstance(rule.lr, Tensor) and not rule.capturable:
                return "takes lr as a tensor only with capturable=True"
        return memory_refusal(candidate)

    def prepare(self, members: Members) -> TritonSection:
        """Make what outlasts a step."""
        return TritonSection(members)


TRITON = Triton()


def _device_refusal(device: torch.device) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != ("cpu" if interpreted else "cuda"):
        return f"is for CUDA, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton (pip install triton)"
    return None if interpreted else _failure(device)


@cache
def _failure(device: torch.device) -> str | None:
    """Why no kernel can be compiled and run on a device, found out by trying; None where it can.

    Triton asks for a C compiler and for a GPU that is new enough, and tells of neither before.
    """
    try:
        with torch.cuda.device(device):
            _kernels().nothing[(1,)](torch.empty(1, dtype=torch.int32, device=device))
    except Exception as error:  # whatever Triton, its compiler or the driver raise
        reason = f"cannot run a Triton kernel here ({type(error).__name__}: {error})"
        logger.warning(
            "AdamP and SGDP %s. On %s they step with torch's operations, which are slower.",
            *(reason, device),
        )
        return reason
    return None


@cache
def _kernels() -> ModuleType:
    # Not before it is used: Triton takes a second to import, and a CPU build of torch has none.
    from . import kernels  # noqa: PLC0415

    return kernels


@dataclass(frozen=True)
class _Launch:
    """Tasks `[begin, end)`, whose rows have about the same width.

    Attributes:
        width: of a tile, a power of two.
        is_aligned: whether their rows begin where four elements can be loaded at once.
        has_rows: whether the weights have rows; vectors are done after the first kernel.
    """

    begin: int
    end: int
    width: int
    is_aligned: bool
    has_rows: bool

    def constants(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        rows = _height(self.width) if self.has_rows else 1
        warps = max(1, rows * self.width // _WARP_ELEMENTS)
        return {"ROWS": rows, "COLUMNS": self.width, "num_warps": warps}


class TritonSection(Prepared):
    """A section as the kernels' tables, and the numbers that they leave on the device."""

    def __init__(self, members: Members) -> None:
        super().__init__(members)
        layout, device = members.layout, members.device
        self._launches, tasks = _tabulate(members)
        self._tasks = _to(device, array("q", chain.from_iterable(tasks)), torch.int64)
        rows = sum(extent.rows for extent in layout.extents) if layout is not None else 0
        numbers = {"dtype": torch.float32, "device": device}
        self._stats = torch.zeros(len(Statistic), rows, **numbers)  # type: ignore[call-overload]
        self._shift = torch.zeros(rows, **numbers)  # type: ignore[call-overload]
        self._done = torch.zeros(len(tasks), dtype=torch.int8, device=device)
        self._owners = _to(device, array("q", _owners(members)), torch.int64)
        self._limits = self._shift if layout is None else layout.channel_limit
        # What the tables on the device were made from.
        self._uploaded: dict[str, tuple[Any, Tensor]] = {}

    def run(self, step: Step) -> Outcome | None:
        """All three stages; the decision is one more kernel where rows stand for themselves."""
        layout = self.members.layout
        stats = self.accumulate(step)
        if layout is None:
            self.apply(step, None)
            return None
        if layout.segments is not None or layout.counted is not None:
            totals = total(stats, layout)
            decision = self.decide(stats, totals, step)
        else:
            totals, decision = self._decide(stats)
        self.apply(step, decision)
        return Outcome(stats, totals, decision)

    def accumulate(self, step: Step) -> Tensor:
        """Advance the moments, sum up rows, and write what has none or is settled."""
        self._addresses = self._table_of_addresses(step)
        self._coefficients = self._table_of_coefficients(step)
        self._seeds = self._table("seeds", array("q", step.seeds or [0]), torch.int64)
        # Records of an earlier step look at its numbers.
        stats = torch.zeros_like(self._stats) if step.recording else self._stats
        for launch in self._launches:
            arguments = self._limits, stats, self._stats.shape[1], self._done
            self._launch(_kernels().measure, launch, step, *arguments)
        return stats

    def apply(self, step: Step, decision: Decision | None) -> None:
        """Write what has rows."""
        if decision is not None:
            kernel = _kernels().write
            for launch in self._launches:
                if launch.has_rows:
                    arguments = launch.end, decision.shift, self._done
                    self._launch(kernel, launch, step, *arguments, TASKS=_WRITTEN_TASKS)
        torch.autograd.graph.increment_version(step.params)

    def _decide(self, stats: Tensor) -> tuple[Tensor, Decision]:
        layout = self.members.layout
        assert layout is not None
        weights, rows = len(layout.extents), stats.shape[1]
        totals = stats.new_empty(len(Statistic) + 1, weights)
        views = Views(*(torch.empty_like(layout.channel_limit, dtype=torch.bool) for _ in range(2)))
        shift = torch.empty_like(self._shift)
        with self._device():
            _kernels().decide[(weights,)](
                *(layout.offsets, self._owners, self._coefficients),
                *(layout.channel_limit, layout.layer_limit, stats, rows, totals, weights),
                *(views.channel.view(torch.int8), views.layer.view(torch.int8), shift),
                BLOCK=_DECIDED_ROWS,
            )
        return totals, Decision(views, shift)

    def _launch(
        self, kernel: Any, launch: _Launch, step: Step, *arguments: Any, **constants: int
    ) -> None:
        """A launch of one program a task, or of one for each so many `TASKS`."""
        tl = _kernels().tl
        moment = step.moments[0][0].dtype if step.moments else torch.float32
        tasks = launch.end - launch.begin
        tables = self._tasks, self._addresses, self._coefficients, self._seeds
        with self._device():
            kernel[(-(-tasks // constants.get("TASKS", 1)),)](
                *(launch.begin, *tables, *arguments),
                TYPE=getattr(tl, _DTYPES[step.params[0].dtype]),
                MOMENT=getattr(tl, _DTYPES[moment]),
                KIND=int(step.rules[0][0].kind),
                AHEAD=any(rule.nesterov for rule, _ in step.rules),
                ROUNDING=ROUNDINGS[self.members.rounding],
                NOISY=bool(step.seeds),
                ALIGNED=launch.is_aligned and self._are_aligned,
                **launch.constants(),
                **constants,
            )

    def _device(self) -> AbstractContextManager[Any]:
        device = self.members.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _table_of_addresses(self, step: Step) -> Tensor:
        """(tensors, 5) int64; see `kernels`."""
        moments: list[list[Tensor]] = [*step.moments, [], []]
        kept = step.compensations if any(c is not None for c in step.compensations) else []
        columns: list[Sequence[Tensor | None]] = [step.params, step.grads, *moments[:2], kept]
        addresses = array("q", bytes(8 * len(columns) * len(step.params)))
        for column, tensors in enumerate(columns):
            if tensors:
                addresses[column :: len(columns)] = addresses_of(tensors)
        self._are_aligned = not reduce(or_, addresses, 0) % _ALIGNMENT
        return self._table("addresses", addresses, torch.int64)

    def _table_of_coefficients(self, step: Step) -> Tensor:
        """(tensors, columns of `kernels.Column`) float32."""
        lines = array("f")
        begin = 0
        for rule, size in step.rules:
            # What depends on a tensor is filled in on the device.
            known = replace(rule, lr=1.0) if isinstance(rule.lr, Tensor) else rule
            counts = step.state_steps[begin : begin + size]
            scalars: list[tuple[Scalar, Scalar]] = [(known.lr, 1.0)] * size
            if is_adam(known) and not _counts_on_device(known, counts):
                sizes, roots = step_scalars(known, counts)
                scalars = list(zip(sizes, roots, strict=True))
            coefficients = known.coefficients
            line = {pair: array("f", (*coefficients, *map(float, pair))) for pair in {*scalars}}
            for pair in scalars:
                lines += line[pair]
            begin += size
        table = self._table("coefficients", lines, torch.float32)
        return _filled(table.view(len(step.params), -1), step)

    def _table(self, name: str, values: array[Any], dtype: torch.dtype) -> Tensor:
        """A table on the device, copied there if it is not the one that is there."""
        if is_captured():
            # What a graph copies is there after a replay only, and what it reads must stay.
            return _to(self.members.device, values, dtype)
        known, table = self._uploaded.get(name, (None, None))
        if table is None or known != values:
            table = _to(self.members.device, values, dtype)
            self._uploaded[name] = (values, table)
        return table


def _counts_on_device(rule: AdamRule, counts: Sequence[Tensor]) -> bool:
    return rule.capturable or not counts[0].is_cpu


def _filled(table: Tensor, step: Step) -> Tensor:
    """Coefficients with what only the device knows: rates and counts of steps."""
    column = _kernels().Column
    filled = table
    begin = 0
    for rule, size in step.rules:
        counts = step.state_steps[begin : begin + size]
        counted = is_adam(rule) and _counts_on_device(rule, counts)
        if filled is table and (counted or isinstance(rule.lr, Tensor)):
            filled = table.clone()
        own = filled[begin : begin + size]
        if is_adam(rule) and counted:
            rate = 1.0 if isinstance(rule.lr, Tensor) else rule.lr
            unread = replace(rule, lr=rate, capturable=True)
            (sizes,), (roots,) = step_scalars(unread, [torch.stack(counts)])
            own[:, column.STEP_SIZE], own[:, column.ROOT] = sizes, roots
        if isinstance(rule.lr, Tensor):
            for index in (column.STEP_SIZE, column.DECAY, column.PROJECTED_DECAY):
                own[:, index] *= rule.lr
        begin += size
    return filled


def _to(device: torch.device, values: array[Any], dtype: torch.dtype) -> Tensor:
    table = torch.tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda":
        return table
    pinned = table.pin_memory()
    if is_captured():
        # Each replay copies from it again.
        keep_for_graphs(pinned)
    return pinned.to(device, non_blocking=True)


def _owners(members: Members) -> list[int]:
    """For each weight with rows the tensor that holds it."""
    return [
        tensor
        for tensor, placements in enumerate(members.placements)
        for placement in placements
        if placement.extent is not None
    ]


def _tabulate(members: Members) -> tuple[list[_Launch], list[tuple[int, ...]]]:
    """All tasks, those of one launch side by side; see `kernels.Field`."""
    alike: dict[tuple[int, bool, bool], list[tuple[int, ...]]] = defaultdict(list)
    row = weight = 0
    for tensor, placements in enumerate(members.placements):
        for placement in placements:
            early = _may_be_early(placement, members)
            for piece in placement.pieces or (as_piece(members.numels[tensor], placement),):
                width = _width(piece.shape[1])
                is_aligned = not any(
                    number % _VECTOR for number in (piece.offset, piece.shape[1], piece.stride[0])
                )
                has_rows = placement.extent is not None
                fits = early and piece.shape[1] <= width
                for first, offset, rows, columns in _cut(piece, width, has_rows=has_rows):
                    place = row + piece.row + first if has_rows else -1
                    alike[width, is_aligned, has_rows].append(
                        (tensor, place, offset, rows, columns, piece.stride[0], weight, int(fits))
                    )
            if placement.extent is not None:
                row, weight = row + placement.extent.rows, weight + 1
    launches = []
    begin = 0
    for (width, is_aligned, has_rows), tasks in alike.items():
        end = begin + len(tasks)
        launches.append(_Launch(begin, end, width, is_aligned, has_rows))
        begin = end
    return launches, list(chain(*alike.values()))


def _width(columns: int) -> int:
    return min(_TILE, max(_NARROWEST, 1 << max(columns - 1, 0).bit_length()))


def _height(width: int) -> int:
    """Rows of a tile."""
    return min(_MOST_ROWS, _TILE // width)


def _cut(piece: Piece, width: int, *, has_rows: bool) -> Iterator[tuple[int, int, int, int]]:
    """First row, offset, rows and columns of each task of a piece."""
    rows, columns = piece.shape
    if not columns:
        return
    if not has_rows:
        for begin in range(0, columns, width):
            yield 0, piece.offset + begin, 1, min(width, columns - begin)
        return
    height = _height(width)
    for first in range(0, rows, height):
        offset = piece.offset + first * piece.stride[0]
        yield first, offset, min(height, rows - first), columns


def _may_be_early(placement: Placement, members: Members) -> bool:
    """Whether a row that fails its test settles that its neighbours are not projected by row."""
    extent = placement.extent
    # Vectors of several rows are projected although each of their rows fails.
    if extent is None or extent.vectors:
        return False
    return members.is_recoverable and not members.is_shared
