"""The CPU's fast path: csrc/kernel.c, one pass over memory and one call for all weights.

The kernel is compiled when the package is installed, if there is a C compiler, and loaded with
ctypes. Here are the tables that it works by, made once for a plan, and the addresses of a step.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ...layout import Piece, Placement, Statistic
from ...projection import Decision, View, Views, total
from ...rules import is_adam
from ..addresses import ROUNDINGS, addresses_of, as_piece, memory_refusal, pointers_of
from ..base import Backend, Candidate, Members, Outcome, Prepared, Step
from .crew import CREW
from .library import SEGMENT, Problem, Rule, has_float16, level, load

__all__ = ["NATIVE", "Native"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# About 100 microseconds of work: enough to make taking a task cheap, little enough to balance.
_TASK_ELEMENTS = 65536
# Below this, waking a second thread takes longer than the work.
_PARALLEL_ELEMENTS = 1 << 17


class Mode(IntEnum):
    """`enum mode`: how a weight is worked on."""

    VECTOR = 0
    WHOLE = 1
    GUESS = 2
    DEFER = 3


class Native(Backend):
    """Serves the CPU, wherever an address tells all of a weight."""

    name = "native"
    is_fused = True
    skips = True

    def is_default_for(self, device_type: str) -> bool:
        """The fastest on a CPU."""
        return device_type == "cpu"

    def refusal(self, candidate: Candidate) -> str | None:
        """Why it cannot serve weights like this, or None where it can."""
        param = candidate.param
        if param.device.type != "cpu":
            return f"is for the CPU, not {param.device.type}"
        library, reason = load()
        if library is None:
            return reason
        if param.dtype not in _DTYPES or candidate.grad.dtype != param.dtype:
            return f"has no kernel for {param.dtype} weights with {candidate.grad.dtype} gradients"
        if param.dtype == torch.float16 and not has_float16():
            return "was compiled without float16"
        return _option_refusal(candidate) or memory_refusal(candidate)

    def prepare(self, members: Members) -> NativeSection:
        """Make what outlasts a step."""
        return NativeSection(members)


NATIVE = Native()


def _option_refusal(candidate: Candidate) -> str | None:
    rule = candidate.rule
    betas = (rule.beta1, rule.beta2) if is_adam(rule) else ()
    if any(isinstance(option, Tensor) for option in (rule.lr, *betas)):
        return "takes lr and betas as floats only"
    count = candidate.state_step
    if count is not None and (count.dtype != torch.float32 or not count.is_cpu):
        return f"needs counts of steps in float32 on the CPU, not {count.dtype} on {count.device}"
    return None


class NativeSection(Prepared):
    """A section as the kernel's tables, and the numbers that it leaves."""

    def __init__(self, members: Members) -> None:
        super().__init__(members)
        tables = _Tables(members)
        rows = sum(placement.extent.rows for placement in members.matrices() if placement.extent)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device="cpu")

        self._stats = numbers(len(Statistic), rows)
        self._shift, self._written = numbers(rows), numbers(rows)
        self._views = torch.zeros(len(tables.blocks), dtype=torch.int8, device="cpu")
        self._of_matrices = torch.tensor(tables.matrices, dtype=torch.int64, device="cpu")
        partials = numbers(tables.slots, len(Statistic))
        scalars = numbers(len(members.numels), 2)
        left = array("q", bytes(8 * len(tables.blocks)))
        # A param group's number here: sections leave out groups.
        seen: dict[int, int] = {}
        rule_of = array("q", [seen.setdefault(group, len(seen)) for group in members.groups])
        arrays = [
            *(array("q", chain.from_iterable(table)) for table in (tables.blocks, tables.tasks)),
            *(array("q", numbers) for numbers in (tables.order, tables.vectors)),
        ]
        blocks, tasks, order, vectors = (table.buffer_info()[0] for table in arrays)
        # Whatever the kernel is told the address of must live as long as this.
        self._alive: list[Any] = [partials, scalars, left, rule_of, *arrays]
        self._rules: tuple[Any, ...] = ()
        # What the latest step was recognised by.
        self._pointers: dict[str, list[int | None]] = {}
        self._addresses: dict[str, array[int]] = {}
        self._references: list[weakref.ref[Tensor]] = []
        self._quick: tuple[Any, ...] = ()
        self._threads = sum(members.numels) >= _PARALLEL_ELEMENTS
        self._problem = Problem(
            n_tensors=len(members.numels),
            n_blocks=len(tables.blocks),
            n_tasks=len(tables.tasks),
            n_order=len(tables.order),
            rounding=ROUNDINGS[members.rounding],
            level=level(),
            rule_of=rule_of.buffer_info()[0],
            scalars=scalars.data_ptr(),
            blocks=blocks,
            tasks=tasks,
            order=order,
            vectors=vectors,
            left=left.buffer_info()[0],
            stats=self._stats.data_ptr(),
            n_rows=rows,
            partials=partials.data_ptr(),
            written=self._written.data_ptr(),
            shift=self._shift.data_ptr(),
            views=self._views.data_ptr(),
        )

    def run(self, step: Step) -> Outcome | None:
        """All three stages in one call."""
        self._call("step", step)
        if self.members.layout is None or not step.recording:
            return None
        views = self._views[self._of_matrices]
        decision = Decision(Views(views == View.CHANNEL, views == View.LAYER), self._shift)
        return Outcome(self._stats, total(self._stats, self.members.layout), decision)

    def accumulate(self, step: Step) -> Tensor:
        """Advance the moments, sum up rows, and write those whose shift can be guessed."""
        # What a process has no gradient for adds nothing to the others' sums.
        self._stats.zero_()
        self._call("measure", step)
        return self._stats

    def apply(self, step: Step, decision: Decision | None) -> None:
        """Write what was not, or by a wrong guess."""
        if decision is not None:
            self._shift.copy_(decision.shift)
            self._call("write", step)

    def fits(self, step: Step) -> bool:
        """As the interface says, and quicker where no tensor has been exchanged.

        A tensor that is the same object, where it was, looks as it did. Weights are looked at more
        closely: `weight.data = weight.data.t()` leaves both.
        """
        moments1, moments2 = (*step.moments, [], [])[:2]
        kept = [compensation for compensation in step.compensations if compensation is not None]
        own = [*moments1, *moments2, *step.state_steps, *kept]
        are_known = _are(self._references, own)
        tensors = {"weights": step.params, "moments1": moments1, "moments2": moments2}
        if not are_known:
            tensors |= {"counts": step.state_steps, "compensations": kept}
        self._follow({"grads": step.grads})
        are_known = self._follow(tensors) and are_known
        sizes = list(map(Tensor.numel, step.params))
        quick = list(map(Tensor.stride, step.params)), sizes, step.grads_look()
        if are_known and quick == self._quick and _have(step.grads, sizes):
            return True
        self._references, self._quick = list(map(weakref.ref, own)), quick
        return super().fits(step)

    def _follow(self, tensors: Mapping[str, Sequence[Tensor | None]]) -> bool:
        """Bring tables of addresses up to date; returns whether all were.

        A table is made anew only where a tensor has moved: to make it takes longer than to look.
        """
        pointers = {**self._pointers, **{name: pointers_of(own) for name, own in tensors.items()}}
        if pointers == self._pointers:
            return True
        moved = {
            name: addresses_of(own, pointers[name])
            for name, own in tensors.items()
            if pointers[name] != self._pointers.get(name)
        }
        self._pointers, self._addresses = pointers, {**self._addresses, **moved}
        return False

    def _call(self, function: str, step: Step) -> None:
        library, _ = load()
        assert library is not None
        problem = self._problem
        seeds = array("q", step.seeds)
        problem.seeds = _begin(seeds)
        for name, table in self._addresses.items():
            setattr(problem, name, _begin(table))
        problem.weight_dtype = _DTYPES[step.params[0].dtype]
        problem.moment_dtype = _DTYPES[step.moments[0][0].dtype] if step.moments else 0
        self._set_rules(step)
        threads = torch.get_num_threads() if self._threads else 1
        CREW.run(library, function, problem, threads)
        # What autograd goes by to find that a tensor it saved has changed. It never saves moments.
        changed = [p for p, grad in zip(step.params, self._addresses["grads"], strict=True) if grad]
        torch.autograd.graph.increment_version(changed)

    def _set_rules(self, step: Step) -> None:
        rules = tuple(rule for rule, _ in step.rules)
        if rules == self._rules:
            return
        table = (Rule * len(rules))()
        for entry, rule in zip(table, rules, strict=True):
            betas = (rule.beta1, rule.beta2) if is_adam(rule) else (0.0, 0.0)
            values = (*rule.coefficients, 0, rule.lr, *betas)
            for field, value in zip(Rule._fields_, values, strict=True):
                setattr(entry, field[0], value)
        self._problem.kind = rules[0].kind
        self._problem.rules = ctypes.addressof(table)
        self._rules, self._rule_table = rules, table


def _are(references: list[weakref.ref[Tensor]], tensors: list[Tensor]) -> bool:
    """Whether these are the very tensors that are remembered."""
    if len(references) != len(tensors):
        return False
    return all(map(is_, (reference() for reference in references), tensors))


def _have(grads: Sequence[Tensor | None], numels: list[int]) -> bool:
    """Whether each gradient has as many elements as its weight."""
    try:
        return list(map(Tensor.numel, grads)) == numels  # type: ignore[arg-type]
    except TypeError:
        pairs = zip(grads, numels, strict=True)
        return all(grad is None or grad.numel() == numel for grad, numel in pairs)


def _begin(table: array[int]) -> int | None:
    return table.buffer_info()[0] if table else None


class _Tables:
    """What the kernel works by; each row in the order of the fields of its structure."""

    def __init__(self, members: Members) -> None:
        self.blocks: list[tuple[int, ...]] = []
        self.tasks: list[tuple[int, ...]] = []
        self.order: list[int] = []
        self.vectors: list[int] = []
        self.matrices: list[int] = []
        self.slots = 0
        self._rows = 0
        written: list[int] = []
        for tensor, placements in enumerate(members.placements):
            for placement in placements:
                later = self._add(tensor, placement, members)
                # A weight later, so that all of it has been measured by then.
                self.order += written
                written = later
        self.order += written

    def _add(self, tensor: int, placement: Placement, members: Members) -> list[int]:
        """Add a weight; returns the entries of the queue that write it, if there are any."""
        extent = placement.extent
        pieces = placement.pieces or (as_piece(members.numels[tensor], placement),)
        mode = _mode(placement, pieces, members)
        block, first_task = len(self.blocks), len(self.tasks)
        self.tasks += self._cut(block, mode, pieces)
        numbers = range(first_task, len(self.tasks))
        rows, columns, numel, vectors = (
            (extent.rows, extent.columns, extent.numel, extent.vectors)
            if extent is not None
            else (0, 0, 0, ())
        )
        self.blocks.append(
            (
                *(tensor, mode, self._rows, rows, columns, numel),
                *(len(self.vectors), len(vectors), first_task, len(numbers)),
            )
        )
        self.vectors += vectors
        self._rows += rows
        if extent is not None:
            self.matrices.append(block)
        self.order += numbers
        return [-1 - task for task in numbers] if mode in (Mode.GUESS, Mode.DEFER) else []

    def _cut(self, block: int, mode: Mode, pieces: Iterable[Piece]) -> Iterator[tuple[int, ...]]:
        for piece in pieces:
            (rows, columns), (stride, _) = piece.shape, piece.stride
            if not columns:
                continue
            width = _TASK_ELEMENTS if mode is Mode.VECTOR else SEGMENT
            if columns <= width:
                height = rows if mode is Mode.WHOLE else max(1, _TASK_ELEMENTS // columns)
                for row in range(0, rows, height):
                    first, count = piece.row + row, min(height, rows - row)
                    yield block, first, count, piece.offset + row * stride, columns, stride, -1
                continue
            for row in range(rows):
                for begin in range(0, columns, width):
                    offset = piece.offset + row * stride + begin
                    length = min(width, columns - begin)
                    slot = -1 if mode is Mode.VECTOR else self.slots
                    self.slots += mode is not Mode.VECTOR
                    yield block, piece.row + row, 1, offset, length, 0, slot


def _mode(placement: Placement, pieces: tuple[Piece, ...], members: Members) -> Mode:
    extent = placement.extent
    if extent is None:
        return Mode.VECTOR
    fits = len(pieces) == 1 and pieces[0].shape[0] * pieces[0].shape[1] <= SEGMENT
    if fits and not members.is_shared:
        return Mode.WHOLE
    # A row that is cut does not know its sums; 16 bits lose the weight that was.
    is_cut = bool(placement.row_slots) or any(piece.shape[1] > SEGMENT for piece in pieces)
    if is_cut or extent.vectors or not members.is_recoverable:
        return Mode.DEFER
    return Mode.GUESS
