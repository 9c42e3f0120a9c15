"""A plan: which weights are stepped together, by whom, and all that outlives a step.

    optimizer.step()  →  Plan.is_current?  →  Plan.step: accumulate → reduce → decide → apply

Made from the param groups once and used until something changes. A *section* is what is decided at
once: all weights that are alike and that one backend serves, or on a CPU a chunk of them that stays
in cache between the three stages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .backends import Flags, choose
from .backends.base import Backend, Candidate, Members, Outcome, Prepared, Step
from .layout import Layout, Placement
from .memory import are_row_major, working_dtype
from .projection import total
from .records import StepRecord, record
from .rules import Rule
from .scale_invariance import place_whole
from .sharding.reducer import Reducer, Share, shares_of_rows, shares_of_weights
from .storage import Precision

__all__ = ["Collected", "Plan"]


@dataclass(frozen=True)
class Collected:
    """What a step finds in a param group; all lists are in parallel.

    Attributes:
        weights: the optimizer's, as records name them.
        params: the same, or this process's parts of those that are sharded; so are all others.
        grads: None where a weight with state has no gradient.
        moments: see `backends.base.Step`, and so are `state_steps` and `compensations`.
        rule: how the step before projection comes about.
        flags: what the group asks of its backend.
        precision: how weights and moments are stored.
        seeds: where each weight's random numbers begin; empty where none are drawn.
    """

    weights: list[Tensor]
    params: list[Tensor]
    grads: list[Tensor | None]
    moments: tuple[list[Tensor], ...]
    state_steps: list[Tensor]
    rule: Rule
    flags: Flags = field(default_factory=Flags)
    precision: Precision = field(default_factory=lambda: Precision("nearest", None))
    compensations: list[Tensor | None] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def traits(self) -> tuple[Any, ...]:
        """Which weights, and what a plan depends on of their options: not on a learning rate."""
        rule = self.rule
        tensors = [name for name, value in vars(rule).items() if isinstance(value, Tensor)]
        return (
            *(self.flags, self.precision, rule.kind, rule.threshold, rule.eps),
            *(rule.scale_invariant, tensors),
            list(map(id, self.weights)),
        )


@dataclass(frozen=True)
class _Section:
    """Weights that are stepped together.

    Attributes:
        picks: for each param group that has some of them its number, and which of what is collected
            of it; None for all.
        prepared: its backend, with what that keeps.
        placements: of its weights with rows.
        row_shares: what other processes add to the sums over its rows.
        weight_shares: and to those over its weights.
        counts: whether it advances the counts of steps itself.
    """

    picks: list[tuple[int, list[int] | None]]
    prepared: Prepared
    placements: list[Placement]
    row_shares: list[Share]
    weight_shares: list[Share]
    counts: bool

    def gather(self, groups: Sequence[Collected]) -> Step:
        """The section's part of what was collected."""

        def pick(column: Callable[[Collected], Any]) -> Any:
            if len(self.picks) == 1 and self.picks[0][1] is None:
                return column(groups[self.picks[0][0]])
            return [value for number, at in self.picks for value in _at(column(groups[number]), at)]

        first = groups[self.picks[0][0]]
        return Step(
            params=pick(lambda group: group.params),
            grads=pick(lambda group: group.grads),
            moments=tuple(
                pick(lambda group, i=index: group.moments[i])  # type: ignore[misc]
                for index in range(len(first.moments))
            ),
            state_steps=pick(lambda group: group.state_steps),
            compensations=pick(lambda group: group.compensations or [None] * len(group.params)),
            seeds=pick(lambda group: group.seeds),
            rules=[
                (groups[number].rule, len(groups[number].params) if at is None else len(at))
                for number, at in self.picks
            ],
        )

    def record(self, step: Step, outcome: Outcome, weights: Sequence[Tensor]) -> StepRecord | None:
        """What the step did to the weights that had a gradient."""
        layout = self.prepared.members.layout
        assert layout is not None
        params, stepped = [], []
        for grad, weight, placements in zip(
            step.grads, weights, self.prepared.members.placements, strict=True
        ):
            for placement in placements:
                if placement.extent is not None:
                    params.append(weight if placement.weight is None else placement.weight)
                    stepped.append(grad is not None)
        return record(params, outcome.stats, outcome.totals, layout, outcome.decision, stepped)


def _at(values: list[Any], indices: list[int] | None) -> list[Any]:
    # Some lists are empty where nobody needs them.
    return values if indices is None or not values else [values[index] for index in indices]


class Plan:
    """What is made from the param groups and used until they change.

    Holds none of the user's tensors: state that is moved, or cleared, is let go.

    Attributes:
        is_real: whether no weight is complex. Whoever collects for the next step need not ask: a
            weight that becomes complex no longer fits the plan.
    """

    def __init__(self, groups: Sequence[Collected], reducer: Reducer | None = None) -> None:
        """Choose backends and lay out weights.

        Raises:
            RuntimeError: if a flag cannot be honoured, or a gradient or state does not fit its
                weight. Nothing has been changed then.
        """
        for group in groups:
            _check_shapes(group)
        self.is_real = not any(map(Tensor.is_complex, chain(*(group.weights for group in groups))))
        self._reducer = reducer
        # Kept for good: what follows looks only at whether all this would come out the same again.
        self._sections = list(_sections(groups, reducer))
        self._traits = [] if torch.compiler.is_compiling() else self._look_at(groups)
        self._watched = _watched(groups, self._sections)
        self._present = self._presence(groups)

    def gather(self, groups: Sequence[Collected]) -> list[Step] | None:
        """What each section steps, or None where the plan is no longer right for these groups."""
        # From the cheapest question to the dearest: most plans that are out of date fail early.
        if self._presence(groups) != self._present or self._look_at(groups) != self._traits:
            return None
        steps = [section.gather(groups) for section in self._sections]
        pairs = zip(self._sections, steps, strict=True)
        # All sections are asked before any is stepped: a step that raises must change nothing.
        return steps if all(section.prepared.fits(step) for section, step in pairs) else None

    @staticmethod
    def _look_at(groups: Sequence[Collected]) -> list[Any]:
        # A mode that sees every operation must not be passed by.
        modes = torch._C._len_torch_dispatch_stack()
        return [modes, *(group.traits() for group in groups)]

    def step_once(self, groups: Sequence[Collected]) -> None:
        """Step weights that are not going to be seen again."""
        steps = [section.gather(groups) for section in self._sections]
        if not torch.compiler.is_compiling():
            for section, step in zip(self._sections, steps, strict=True):
                section.prepared.fits(step)
        self.step(groups, steps)

    def _presence(self, groups: Sequence[Collected]) -> list[Any]:
        """Which weights have a gradient, where a backend cannot do without one."""
        counts = [len(group.grads) for group in groups]
        if counts != [len(watched) for watched in self._watched]:
            return counts
        return [
            [grad is None for grad, own in zip(group.grads, watched, strict=True) if own]
            if any(watched)
            else None
            for group, watched in zip(groups, self._watched, strict=True)
        ]

    def step(
        self, groups: Sequence[Collected], steps: Sequence[Step], *, recording: bool = False
    ) -> list[StepRecord]:
        """Update all weights that have a gradient; `steps` is what `gather` found.

        Returns:
            If recording, one record for every section that has weights with rows.
        """
        found: list[tuple[_Section, Step, Outcome | None]] = []
        # These wait for the others, so that processes meet twice a step and not twice a section.
        shared: list[tuple[_Section, Step]] = []
        if recording:
            steps = [replace(step, recording=True) for step in steps]
        for section, step in zip(self._sections, steps, strict=True):
            if not section.counts:
                _count_step(step.state_steps)
            if section.prepared.members.is_shared:
                shared.append((section, step))
            else:
                found.append((section, step, section.prepared.run(step)))
        # Whatever this process has to contribute, all of them meet here.
        if self._reducer is not None:
            found += _step_shared(shared, self._reducer)
        if not recording:
            return []
        records = [
            section.record(step, outcome, _weights_of(section, groups))
            for section, step, outcome in found
            if outcome is not None
        ]
        return [record for record in records if record is not None]


def _weights_of(section: _Section, groups: Sequence[Collected]) -> list[Tensor]:
    """The weights of a section, as the optimizer has them."""
    return [weight for number, at in section.picks for weight in _at(groups[number].weights, at)]


def _step_shared(
    shared: list[tuple[_Section, Step]], reducer: Reducer
) -> list[tuple[_Section, Step, Outcome | None]]:
    """All stages of weights that other processes have a part of: everybody meets twice."""
    # A row that is cut fails or passes its test as a whole, so its sums come first; which rows pass
    # then decides what a weight adds up, so totals come second.
    stats = [section.prepared.accumulate(step) for section, step in shared]
    sections = [section for section, _ in shared]
    pairs = list(zip(sections, stats, strict=True))
    reducer.add_rows([(section.row_shares, own) for section, own in pairs])
    totals = [
        total(own, section.prepared.members.layout)
        if section.prepared.members.layout is not None
        else own.new_empty(6, 0)
        for section, own in pairs
    ]
    reducer.add_weights(
        [(section.weight_shares, own) for section, own in zip(sections, totals, strict=True)]
    )
    found: list[tuple[_Section, Step, Outcome | None]] = []
    for (section, step), own, sums in zip(shared, stats, totals, strict=True):
        # Biases and the like: nothing is projected, so there was nothing to wait for.
        if section.prepared.members.layout is None:
            section.prepared.apply(step, None)
            continue
        decision = section.prepared.decide(own, sums, step)
        section.prepared.apply(step, decision)
        found.append((section, step, Outcome(own, sums, decision)))
    return found


def _count_step(state_steps: list[Tensor]) -> None:
    if not state_steps:
        return
    if torch.compiler.is_compiling() or not state_steps[0].is_cpu:
        torch._foreach_add_(state_steps, 1)
    else:
        # A Python 1 would be wrapped into a tensor again for every weight.
        one = torch.tensor(1.0, dtype=torch.float32, device="cpu")
        torch._foreach_add_(state_steps, one, alpha=1.0)


def _sections(groups: Sequence[Collected], reducer: Reducer | None) -> Iterator[_Section]:
    """Sort the weights of all groups into sections."""
    alike: dict[Any, list[tuple[int, int, tuple[Placement, ...]]]] = defaultdict(list)
    backends: dict[str, Backend] = {}
    for number, group in enumerate(groups):
        for kind, indices in _by_kind(group).items():
            # A backend is asked about a weight with its gradient; with none there is no answer yet.
            if all(group.grads[index] is None for index in indices):
                continue
            placements = [_placements(group, index, reducer) for index in indices]
            # What other processes have a say in is decided apart: nothing else may wait for them.
            is_shared = [any(p.is_shared for p in places) for places in placements]
            for shared in {*is_shared}:
                own = [i for i, s in enumerate(is_shared) if s == shared]
                first = _with_grad(group, [indices[i] for i in own])
                if first is None:
                    continue
                backend = choose(_candidate(group, first, placements[own[0]]), group.flags)
                backends[backend.name] = backend
                # A param group is no border: a thousand groups of one weight are one section.
                for i in own:
                    if backend.skips or group.grads[indices[i]] is not None:
                        apart = backend.keeps_vectors_apart and _has_vectors(placements[i])
                        key = (backend.name, shared, group.rule.kind, group.precision, kind, apart)
                        alike[key].append((number, indices[i], placements[i]))
    for (name, shared, _, precision, _, _), tensors in alike.items():
        backend = backends[name]
        for chunk in _chunks(tensors, groups, None if shared else backend):
            yield _section(chunk, groups, backend, precision, is_shared=shared)


def _has_vectors(placements: tuple[Placement, ...]) -> bool:
    return any(p.extent is not None and p.extent.vectors for p in placements)


def _by_kind(group: Collected) -> dict[Any, list[int]]:
    """The weights of a group by what decides who can serve them, and with which."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for index, param in enumerate(group.params):
        grad = group.grads[index]
        tensors = [param, *(moment[index] for moment in group.moments)]
        kept = group.compensations[index] if group.compensations else None
        tensors += [kept] if kept is not None else []
        others = tensors if grad is None else [grad, *tensors]
        # All that a backend's answer may depend on, save for options, which a group has in common.
        kind = (
            *(type(tensor) for tensor in tensors),
            *(tensor.dtype for tensor in tensors),
            *(tensor.device for tensor in tensors),
            param.dtype if grad is None else grad.dtype,
            type(grad) if grad is not None else Tensor,
            group.state_steps[index].dtype if group.state_steps else None,
            kept is not None,
            are_row_major(*others),
        )
        kinds[kind].append(index)
    return kinds


def _placements(group: Collected, index: int, reducer: Reducer | None) -> tuple[Placement, ...]:
    """The weights that a tensor holds."""
    weight = group.weights[index]
    if reducer is not None and id(weight) in reducer.placements:
        return reducer.placements[id(weight)]
    return (place_whole(group.rule.scale_invariant, group.params[index].shape),)


def _with_grad(group: Collected, indices: list[int]) -> int | None:
    return next((index for index in indices if group.grads[index] is not None), None)


def _candidate(group: Collected, index: int, placements: tuple[Placement, ...]) -> Candidate:
    grad = group.grads[index]
    assert grad is not None
    return Candidate(
        param=group.params[index],
        grad=grad,
        moments=tuple(moment[index] for moment in group.moments),
        state_step=group.state_steps[index] if group.state_steps else None,
        compensation=group.compensations[index] if group.compensations else None,
        rule=group.rule,
        placements=placements,
    )


def _chunks(
    tensors: list[tuple[int, int, tuple[Placement, ...]]],
    groups: Sequence[Collected],
    backend: Backend | None,
) -> Iterator[list[tuple[int, int, tuple[Placement, ...]]]]:
    """Runs of tensors with at most so many elements as a backend likes, or one tensor."""
    # All are on one device: it is part of their kind.
    number, index, _ = tensors[0]
    device = groups[number].params[index].device.type
    limit = backend.chunk_elements(device) if backend is not None else None
    if limit is None or torch.compiler.is_compiling():
        yield tensors
        return
    chunk: list[tuple[int, int, tuple[Placement, ...]]] = []
    size = 0
    for tensor in tensors:
        elements = groups[tensor[0]].params[tensor[1]].numel()
        if size and size + elements > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(tensor)
        size += elements
    yield chunk


def _section(
    tensors: list[tuple[int, int, tuple[Placement, ...]]],
    groups: Sequence[Collected],
    backend: Backend,
    precision: Precision,
    *,
    is_shared: bool,
) -> _Section:
    params = [groups[number].params[index] for number, index, _ in tensors]
    dtype, device = working_dtype(params[0].dtype), params[0].device
    # A flat tensor holds many weights, so there may be more placements than tensors.
    owned = [(groups[n].rule, p) for n, _, ps in tensors for p in ps if p.extent is not None]
    placements = [placement for _, placement in owned]
    extents = [placement.extent for placement in placements if placement.extent is not None]
    layout = None
    if extents:
        layout = Layout.build(
            extents,
            [rule.threshold for rule, _ in owned],
            [rule.eps for rule, _ in owned],
            guests=list(_guests(placements)),
            dtype=dtype,
            device=device,
        )
    members = Members(
        placements=[places for _, _, places in tensors],
        numels=[param.numel() for param in params],
        groups=[number for number, _, _ in tensors],
        layout=layout,
        rounding=precision.rounding,
        dtype=dtype,
        device=device,
        # What 16 bits have rounded away cannot be had back from the weight that was written.
        is_recoverable=params[0].dtype == dtype,
        is_shared=is_shared,
    )
    picks: list[tuple[int, list[int] | None]] = []
    for number in dict.fromkeys(members.groups):
        indices = [index for n, index, _ in tensors if n == number]
        every = indices == list(range(len(groups[number].params)))
        picks.append((number, None if every else indices))
    return _Section(
        picks=picks,
        prepared=backend.prepare(members),
        placements=placements,
        row_shares=shares_of_rows(placements, device) if is_shared else [],
        weight_shares=shares_of_weights(placements, layout) if is_shared and layout else [],
        counts=backend.skips,
    )


def _guests(placements: Sequence[Placement]) -> Iterator[int]:
    begin = 0
    for placement in placements:
        for row in placement.guests:
            yield begin + row
        begin += placement.extent.rows if placement.extent is not None else 0


def _watched(groups: Sequence[Collected], sections: Sequence[_Section]) -> list[list[bool]]:
    """For each weight whether its gradient must neither come nor go while a plan lasts."""
    watched = [[True] * len(group.params) for group in groups]
    for section in sections:
        if section.counts:
            for number, at in section.picks:
                for index in range(len(watched[number])) if at is None else at:
                    watched[number][index] = False
    return watched


def _check_shapes(group: Collected) -> None:
    """Refuse gradients and state of another shape than their weight's."""
    # A kernel that reads addresses would not notice.
    for index, param in enumerate(group.params):
        others = [group.grads[index], *(moment[index] for moment in group.moments)]
        others += [group.compensations[index]] if group.compensations else []
        for other in others:
            if other is not None and other.shape != param.shape:
                raise RuntimeError(
                    f"a weight of shape {tuple(param.shape)} has a gradient or state of shape "
                    f"{tuple(other.shape)}; delete its entry in optimizer.state if it was resized."
                )
