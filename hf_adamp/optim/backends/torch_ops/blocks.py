"""What steps in torch's operations share: tensors as blocks of rows, loaded and stored.

A block is a tensor whose first dimension is rows: a weight itself, or a view of the part of a flat
tensor that holds whole rows or one piece of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...layout import Piece, Placement
from ...memory import working_dtype
from ...projection import Decision
from ...rules import Rule, Scalar
from ...storage import Noise, is_low, load, load_weight, store, store_weight
from ..base import Candidate, Members, Prepared, Step

__all__ = ["Moments", "TorchSection", "state_refusal"]

Moments = tuple[list[Tensor], ...]


class TorchSection(Prepared):
    """Loads tensors, cuts them into blocks, stores what came of them; the arithmetic is missing.

    Between `accumulate` and `apply` it holds what a step needs twice: the weights in working
    precision and their steps.
    """

    def __init__(self, members: Members) -> None:
        super().__init__(members)
        ranges = iter(members.row_ranges())
        # For each block its tensor, the piece of it that it is, and its rows in the statistics.
        self._blocks: list[tuple[int, Piece | None, slice | None]] = []
        for tensor, placements in enumerate(members.placements):
            for placement in placements:
                rows = next(ranges) if placement.extent is not None else None
                self._blocks += [(tensor, *block) for block in _blocks_of(placement, rows)]
        self._with_rows = [index for index, block in enumerate(self._blocks) if block[2]]
        self._is_cut = any(piece is not None for _, piece, _ in self._blocks)

    @abstractmethod
    def advance(self, rule: Rule, grads: list[Tensor], moments: Moments) -> None:
        """Update the moments of some blocks, in place."""

    @abstractmethod
    def displacements(
        self, rule: Rule, grads: list[Tensor], moments: Moments, state_steps: list[Tensor]
    ) -> list[Tensor]:
        """The step of each of some blocks, in memory of its own."""

    @abstractmethod
    def row_sums(self, grads: list[Tensor], weights: list[Tensor], steps: list[Tensor]) -> Tensor:
        """(5, R) sums over each row of these blocks; see `layout.Statistic`."""

    @abstractmethod
    def write(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        steps: list[Tensor],
        factors: list[Scalar],
    ) -> None:
        """`target ← target − (step − factor · w)`; a factor is a number, or one for each row."""

    def accumulate(self, step: Step) -> Tensor:
        """Advance and keep the moments, sum up rows."""
        targets = list(map(load_weight, step.params, step.compensations))
        # What autograd keeps for its way back must not be the tensor that a step changes.
        weights = [wide.clone() for wide in targets] if torch.is_grad_enabled() else targets
        grads = [load(grad).to(self.members.dtype) for grad in step.grads if grad is not None]
        self._noises = [Noise(self.members.device, seed) for seed in step.seeds]
        grad_blocks = [
            -block if rule.maximize else block
            for rule, own in self._runs(step)
            for block in self._cut(grads)[own]
        ]
        moments = self._advanced(step, grad_blocks)
        counts = [step.state_steps[owner] for owner, _, _ in self._blocks if step.state_steps]
        steps: list[Tensor] = []
        for rule, own in self._runs(step):
            kept = tuple(blocks[own] for blocks in moments)
            steps += self.displacements(rule, grad_blocks[own], kept, counts[own])
        self._targets, self._weights, self._steps = targets, self._cut(weights), steps
        if not self._with_rows:
            return targets[0].new_zeros(5, 0)
        of_rows = [
            [blocks[index] for index in self._with_rows]
            for blocks in (grad_blocks, self._weights, steps)
        ]
        return self.row_sums(*of_rows)

    def apply(self, step: Step, decision: Decision | None) -> None:
        """`w ← w + (shift · w − step)`, a shift for each row or, without rows, weight decay."""
        factors: list[Scalar] = []
        for rule, own in self._runs(step):
            for block, (_, _, rows) in zip(self._weights[own], self._blocks[own], strict=True):
                factors.append(
                    -rule.decay
                    if rows is None or decision is None
                    else decision.shift[rows].reshape(-1, *[1] * (block.ndim - 1))
                )
        self.write(self._cut(self._targets), self._weights, self._steps, factors)
        for index, (param, target) in enumerate(zip(step.params, self._targets, strict=True)):
            if target is not param:
                noise = self._noises[index] if self.members.rounding == "stochastic" else None
                store_weight(param, target, step.compensations[index], noise)
        # They are as large as the weights.
        self._targets, self._weights, self._steps = [], [], []

    def _advanced(self, step: Step, grad_blocks: list[Tensor]) -> Moments:
        """Blocks of the moments after this step, as they are kept."""
        wide = [list(map(load, kept)) for kept in step.moments]
        blocks = tuple(map(self._cut, wide))
        for rule, own in self._runs(step):
            self.advance(rule, grad_blocks[own], tuple(moment[own] for moment in blocks))
        if not any(is_low(kept[0]) for kept in step.moments):
            return blocks
        stored: list[list[Tensor]] = [[] for _ in wide]
        for index, noise in enumerate(self._noises):
            for kept, advanced, result in zip(step.moments, wide, stored, strict=True):
                result.append(store(kept[index], advanced[index], noise))
        return tuple(map(self._cut, stored))

    def _runs(self, step: Step) -> Iterator[tuple[Rule, slice]]:
        """Each group's rule and its blocks."""
        tensor = begin = 0
        for rule, count in step.rules:
            tensor += count
            end = begin
            while end < len(self._blocks) and self._blocks[end][0] < tensor:
                end += 1
            yield rule, slice(begin, end)
            begin = end

    def _cut(self, tensors: list[Tensor]) -> list[Tensor]:
        if not self._is_cut:
            return tensors
        return [_view(tensors[owner], piece) for owner, piece, _ in self._blocks]


def _blocks_of(
    placement: Placement, rows: slice | None
) -> Iterator[tuple[Piece | None, slice | None]]:
    if placement.pieces is None:
        yield None, rows
        return
    for piece in placement.pieces:
        begin = rows.start + piece.row if rows is not None else 0
        yield piece, None if rows is None else slice(begin, begin + piece.shape[0])


def _view(tensor: Tensor, piece: Piece | None) -> Tensor:
    if piece is None:
        return tensor
    return tensor.as_strided(piece.shape, piece.stride, tensor.storage_offset() + piece.offset)


def state_refusal(candidate: Candidate) -> str | None:
    """Why torch's operations cannot serve a weight's state, or None where they can."""
    dtype = working_dtype(candidate.param.dtype)
    for moment in candidate.moments:
        if moment.dtype != dtype and not is_low(moment):
            return f"needs state in {dtype}, not {moment.dtype}"
    if any(p.pieces for p in candidate.placements) and not _all_contiguous(candidate.tensors):
        return "needs contiguous weights, gradients and state where a tensor holds pieces of rows"
    return None


def _all_contiguous(tensors: Sequence[Tensor]) -> bool:
    return all(map(Tensor.is_contiguous, tensors))
