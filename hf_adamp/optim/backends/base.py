"""What a backend is: it computes a step for weights that are alike, in three stages.

    accumulate: moments advance; five sums a row          a loop over elements
    decide:     which weights lose their radial part      a few numbers a weight
    apply:      w ← w + (shift · w − step)                a loop over elements

A backend says whom it serves and prepares what outlasts a step; the plan asks it once for each
section, and again when something has changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .. import projection
from ..layout import Layout, Placement
from ..projection import Decision
from ..rules import Rule, Scalar

_dtype, _device, _shape = attrgetter("dtype"), attrgetter("device"), attrgetter("shape")

__all__ = ["Backend", "Candidate", "Members", "Outcome", "Prepared", "Step"]


@dataclass(frozen=True)
class Candidate:
    """One weight, which stands for all that are to be served alike.

    Those are of one class, device, dtype and order in memory, and so are their gradients and state.
    """

    param: Tensor
    grad: Tensor
    moments: tuple[Tensor, ...]
    state_step: Tensor | None
    compensation: Tensor | None
    rule: Rule
    placements: tuple[Placement, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of the weight's size."""
        kept = () if self.compensation is None else (self.compensation,)
        return (self.param, self.grad, *self.moments, *kept)


@dataclass(frozen=True)
class Members:
    """The weights of a section, for as long as a plan lasts. Holds none of the user's tensors.

    Attributes:
        placements: for each tensor, the weights that it holds: one, or several in a flat shard.
        numels: the elements of each tensor.
        groups: the param group of each tensor; those of one group stand side by side.
        layout: of all weights with rows, in order; None where there is none.
        rounding: how weights are stored.
        dtype: the working precision.
        device: of all tensors.
        is_recoverable: whether a weight that was written tells what it was: not in 16 bits.
        is_shared: whether other processes have a say in a decision.
    """

    placements: list[tuple[Placement, ...]]
    numels: list[int]
    groups: list[int]
    layout: Layout | None
    rounding: str
    dtype: torch.dtype
    device: torch.device
    is_recoverable: bool
    is_shared: bool

    def matrices(self) -> list[Placement]:
        """The weights with rows, numbered as in the layout."""
        return [p for placements in self.placements for p in placements if p.extent is not None]

    def row_ranges(self) -> list[slice]:
        """For each of them its rows in the statistics buffer."""
        counts = [placement.extent.rows for placement in self.matrices() if placement.extent]
        return [slice(begin, end) for begin, end in pairwise(accumulate(counts, initial=0))]


@dataclass(frozen=True)
class Step:
    """What a step brings to a section; all lists are in the order of its tensors.

    Attributes:
        params: the weights, or this process's parts of them.
        grads: None where a weight has no gradient in this step; only a backend that `skips` sees
            that.
        moments: `(exp_avg, exp_avg_sq)`, `(momentum,)` or `()`.
        state_steps: the count of steps of each weight, or nothing where a rule keeps none.
        compensations: what rounding has cut off each weight; None where nothing is kept of it.
        seeds: where each weight's random numbers begin.
        rules: of the section's groups, each with the number of its tensors.
        recording: whether the fifth statistic is wanted.
    """

    params: list[Tensor]
    grads: list[Tensor | None]
    moments: tuple[list[Tensor], ...]
    state_steps: list[Tensor]
    compensations: list[Tensor | None]
    seeds: list[int]
    rules: list[tuple[Rule, int]]
    recording: bool = False

    def look(self) -> tuple[Any, ...]:
        """All of a step's tensors that a plan rests on, and that may differ in the next step.

        Made by passes of C over each list, since there may be thousands of weights.
        """
        kept = [compensation for compensation in self.compensations if compensation is not None]
        return (
            list(map(_shape, self.params)),
            *(_look(tensors) for tensors in (self.params, *self.moments, kept)),
            [list(map(Tensor.numel, moment)) for moment in self.moments],
            self.grads_look(),
            _kinds(_device, [grad for grad in self.grads if grad is not None]),
            _grads_fit(self.grads, self.params),
            *(_kinds(look, self.state_steps) for look in (_dtype, _device)),
        )

    def grads_look(self) -> tuple[Any, ...]:
        """The same of gradients, which are new in every step.

        But for their device, which torch holds to be the weight's.
        """
        grads = [grad for grad in self.grads if grad is not None]
        return _kinds(type, grads), _kinds(_dtype, grads), _strides(grads)


@dataclass(frozen=True)
class Outcome:
    """What a section found in a step.

    Attributes:
        stats: (5, R) see `layout.Statistic`.
        totals: (6, S) see `projection.total`.
        decision: what was done about it.
    """

    stats: Tensor
    totals: Tensor
    decision: Decision


class Prepared(ABC):
    """A section with all that its backend keeps from one step to the next."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self._look: tuple[Any, ...] | None = None

    def fits(self, step: Step) -> bool:
        """Whether a step's tensors look as they did in the first step.

        Raises:
            RuntimeError: for a tensor whose memory was taken away. Nothing has been changed then.
        """
        look = step.look()
        # The first step is the one that the section was made for.
        if self._look is None:
            self._look = look
        return look == self._look

    @abstractmethod
    def accumulate(self, step: Step) -> Tensor:
        """Advance the moments; return the (5, R) statistics of the rows that are here."""

    def decide(self, stats: Tensor, totals: Tensor, step: Step) -> Decision:
        """Choose the views and shifts of all weights; `projection.decide` by default."""
        layout = self.members.layout
        assert layout is not None
        return projection.decide(stats, totals, layout, *self._decays(step, stats))

    @abstractmethod
    def apply(self, step: Step, decision: Decision | None) -> None:
        """Write the weights; `decision` is None where none of them has rows."""

    def run(self, step: Step) -> Outcome | None:
        """All three stages, where no other process has a say."""
        stats = self.accumulate(step)
        if self.members.layout is None:
            self.apply(step, None)
            return None
        totals = projection.total(stats, self.members.layout)
        decision = self.decide(stats, totals, step)
        self.apply(step, decision)
        return Outcome(stats, totals, decision)

    def _decays(self, step: Step, like: Tensor) -> tuple[Tensor, Tensor]:
        """What weight decay takes of each weight that is not projected, and that is."""
        # Rules are a group's; decisions are a weight's, and biases are not among those.
        counts: list[tuple[Rule, int]] = []
        begin = 0
        for rule, size in step.rules:
            held = self.members.placements[begin : begin + size]
            begin += size
            counts.append((rule, sum(p.extent is not None for places in held for p in places)))
        return (
            _per_weight([(count, rule.decay) for rule, count in counts], like),
            _per_weight([(count, rule.decay * rule.wd_ratio) for rule, count in counts], like),
        )


class Backend(ABC):
    """A way to compute steps. Stateless: what it keeps is in what it prepares.

    Attributes:
        name: how messages name it.
        is_fused: whether `fused=True` may choose it.
        skips: whether it takes weights without a gradient, so that a plan outlasts their absence.
        keeps_vectors_apart: whether weights that are declared to consist of vectors (heads) are
            decided in another way than others, whose bits must not depend on such neighbours.
    """

    name: str
    is_fused: bool = False
    skips: bool = False
    keeps_vectors_apart: bool = False

    @abstractmethod
    def is_default_for(self, device_type: str) -> bool:
        """Whether it may be chosen on such a device where no flag asks for it."""

    def chunk_elements(self, device_type: str) -> int | None:
        """How many elements are best decided at once; None for all."""
        del device_type
        return None

    @abstractmethod
    def refusal(self, candidate: Candidate) -> str | None:
        """Why it cannot serve weights like this, or None where it can."""

    @abstractmethod
    def prepare(self, members: Members) -> Prepared:
        """Make what outlasts a step."""


def _kinds(trait: Callable[[Tensor], Any], tensors: Sequence[Tensor]) -> Any:
    """What a trait of the tensors is; of each, where they differ, since two may change places."""
    # One set made in C tells most often all; a list is made where it does not.
    kinds = {*map(trait, tensors)}
    return kinds if len(kinds) < 2 else list(map(trait, tensors))


def _strides(tensors: Sequence[Tensor]) -> Any:
    """True where all are contiguous, as almost always, else the strides of each."""
    return all(map(Tensor.is_contiguous, tensors)) or list(map(Tensor.stride, tensors))


def _look(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    kinds = (_kinds(trait, tensors) for trait in (type, _dtype, _device))
    return (len(tensors), *kinds, _strides(tensors))


def _grads_fit(grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> bool:
    """Whether each gradient has as many elements as its weight."""
    pairs = zip(grads, params, strict=True)
    return all(grad is None or grad.numel() == param.numel() for grad, param in pairs)


def _per_weight(values: Sequence[tuple[int, Scalar]], like: Tensor) -> Tensor:
    # Filled on the device: a copy from the host would have to be waited for.
    parts = [
        value.to(like, non_blocking=True).reshape(1).expand(count)
        if isinstance(value, Tensor)
        else like.new_full((count,), value)
        for count, value in values
        if count
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
