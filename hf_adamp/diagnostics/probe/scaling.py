"""The finest groups of rows that can be scaled on their own without any effect.

Where the output does not change when a group is scaled, its derivative along the group is zero:
`Σ g·w = 0` over the group (paper, equation 4). One gradient therefore screens every grouping of
every weight at once; the groupings that pass are then scaled, and the output has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_adamp.diagnostics.probe.evaluation import Gradients, Scaling, Subject, relative_change
from hf_adamp.diagnostics.probe.folding import ROWS, Grouping, foldings
from hf_adamp.diagnostics.probe.partition import partition

__all__ = ["Finding", "Screen", "confirm", "find"]

# `|cos(g, w)|·√dim` is about 1 for a random direction, whatever the dimension. In the tests' models
# it is at most 4e-14 for invariant weights, and at least 0.04 for the others.
_LIMIT = 1e-6
# A weight that changes the output by less has no effect on it: on one pixel a depthwise row is a
# single number, which the norm behind it divides out but for what remains of its eps, 3e-10.
_NOTHING = 1e-8
# A group whose influence is a smaller share of the strongest group's has none.
_DEAD = 1e-6
# Of a weight whose rows are invariant in part, less is not worth telling.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Finding:
    """What scaling a weight does.

    Attributes:
        grouping: the finest groups of rows that can be scaled on their own; None: not even all
            rows together, nor a part of them.
        partial: number of equal groups, and the share of them (between 0 and 1) that can be
            scaled, where it is not all.
        effect: relative change of the output by a random change of the weight of the same size; 0
            where the weight has no influence.
        change: relative change of the output by scaling, with eps as it is; to first order where
            there are no groups.
    """

    grouping: Grouping | None
    partial: tuple[int, float] | None
    effect: float
    change: float

    @property
    def groups(self) -> int | None:
        """The number of groups where they are equal and all there is."""
        return None if self.grouping is None else self.grouping.groups


class Screen:
    """Row statistics of one weight, or of a weight and its bias, over some gradients.

    Args:
        subject: The model.
        names: The tensors that are scaled together, with the same number of rows.
        gradients: At least one.
        folding: How rows are told.
    """

    def __init__(
        self,
        subject: Subject,
        names: Sequence[str],
        gradients: Sequence[Gradients],
        folding: str = ROWS,
    ) -> None:
        parts = [(name, folding) for name in names]
        self.folding = folding
        self.rows = len(subject.squares[parts[0]])
        self.numel = sum(subject.copies[name].numel() for name in names)
        self.weight_sq = torch.stack([subject.squares[part] for part in parts]).sum(0)
        # (gradients, rows)
        self.dot, self.grad_sq = (
            torch.stack([torch.stack([of[part] for part in parts]).sum(0) for of in kind])
            for kind in zip(*gradients, strict=True)
        )

    @property
    def effect(self) -> float:
        """Relative change of the output by a random change of the weight as large as itself."""
        squares = self.grad_sq.sum(1) * self.weight_sq.sum() / self.numel
        return float(squares.mean().sqrt())

    @property
    def radial(self) -> float:
        """Relative change of the output when the weight is scaled, to first order, by 2."""
        return float(self.dot.sum(1).square().mean().sqrt())

    def passing(self, groups: int) -> tuple[Tensor, Tensor]:
        """Which groups have an influence, and which of those cannot be told from invariant ones."""
        cosine, norms = self.cosines(groups)
        alive = norms.amax(0) > _DEAD * norms.max()
        radial = (cosine * math.sqrt(self.numel / groups)).amax(0)
        return alive, alive & (radial < _LIMIT)

    def share(self, groups: int) -> float:
        """The share of the groups with an influence that seem invariant."""
        alive, passed = self.passing(groups)
        return float(passed.sum() / alive.sum())

    def cosines(self, groups: int) -> tuple[Tensor, Tensor]:
        """`|cos(g, w)|` and `|g||w|` of each gradient and group."""
        dot, grad_sq = (t.reshape(len(t), groups, -1).sum(2) for t in (self.dot, self.grad_sq))
        norms = (grad_sq * self.weight_sq.reshape(groups, -1).sum(1)).sqrt()
        return (dot.abs() / norms).nan_to_num(nan=0.0), norms

    def largest_cosine(self, grouping: Grouping) -> float:
        """The largest `|cos(g, w)|` of a scaled group that has an influence, over the gradients."""
        if grouping.groups is not None:
            alive, _ = self.passing(grouping.groups)
            return float(self.cosines(grouping.groups)[0][:, alive].max())
        sizes = torch.tensor(grouping.sizes, device=self.dot.device)
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes.abs())
        zeros = torch.zeros(len(sizes), dtype=self.dot.dtype, device=sizes.device)
        weight_sq = zeros.index_add(0, owner, self.weight_sq)
        largest = 0.0
        for dot, grad_sq in zip(self.dot, self.grad_sq, strict=True):
            norm = (zeros.index_add(0, owner, grad_sq) * weight_sq).sqrt()
            cosine = zeros.index_add(0, owner, dot).abs() / norm
            largest = max(largest, float(cosine[(sizes > 0) & (norm > 0)].amax()))
        return largest

    def groupings(self) -> Iterator[int]:
        """Every number of equal groups, the finest first."""
        small = [i for i in range(1, math.isqrt(self.rows) + 1) if self.rows % i == 0]
        yield from sorted({*small, *(self.rows // i for i in small)}, reverse=True)

    def candidates(self, *, unequal_too: bool) -> Iterator[Grouping]:
        """Equal groups that all seem invariant, and unequal ones of which some do; finest first."""
        equal = next((n for n in self.groupings() if self.share(n) == 1), 0)
        unequal = self._unequal() if unequal_too and equal < self.rows else None
        if unequal is not None and unequal.count > equal:
            yield unequal
        for groups in self.groupings():
            if groups <= equal and self.share(groups) == 1:
                yield Grouping.equal(groups, self.rows)

    def _unequal(self) -> Grouping | None:
        """Groups that differ in size, or that are not all there is."""
        alive, _ = self.passing(self.rows)
        sizes = partition(self.dot, self.grad_sq * self.weight_sq, alive, _LIMIT, self.numel)
        if sizes is None or sum(s for s in sizes if s > 0) < _LEAST_SHARE * self.rows:
            return None
        return Grouping(sizes)

    def partial(self) -> tuple[int, float] | None:
        """The equal groups of which the largest share, but not all, seem invariant."""
        shares = [(groups, self.share(groups)) for groups in self.groupings()]
        part = [(groups, share) for groups, share in shares if 0 < share < 1]
        return max(part, key=lambda pair: pair[1], default=None)


def _candidates(
    subject: Subject, names: Sequence[str], gradients: Sequence[Gradients], screen: Screen
) -> Iterator[Grouping]:
    """Groupings that seem invariant, the finest first; with a bias, equal groups only."""
    is_alone = len(names) == 1
    if is_alone:
        for folding in foldings(subject.copies[names[0]].shape)[1:]:
            stack = Screen(subject, names, gradients, folding)
            if stack.share(stack.rows) == 1:
                yield Grouping.equal(stack.rows, stack.rows, folding)
    yield from screen.candidates(unequal_too=is_alone)


def confirm(
    subject: Subject,
    names: Sequence[str],
    gradients: Sequence[Gradients],
    precise: list[Tensor],
    generator: torch.Generator,
) -> bool:
    """Scale every candidate among `names` at once; whether the output stays as it is.

    Where it does, each candidate is invariant, and a forward pass for each is saved.
    """
    scaled: dict[str, Grouping] = {}
    effects = []
    for name in names:
        screen = Screen(subject, [name], gradients)
        if screen.effect >= _NOTHING:
            first = next(_candidates(subject, [name], gradients, screen), None)
            if first is not None:
                scaled[name] = first
                effects.append(screen.effect)
    changed = _change(subject, scaled, precise, generator, shrink_eps=True)
    return changed < _LIMIT * min(effects, default=0.0)


def find(
    subject: Subject,
    names: Sequence[str],
    gradients: Sequence[Gradients],
    precise: list[Tensor],
    plain: list[Tensor],
    generator: torch.Generator,
    *,
    confirmed: bool = False,
) -> Finding:
    """Find the finest grouping of the rows of `names`, which are scaled together.

    Args:
        subject: The model.
        names: A weight; or a weight and its bias.
        gradients: Of random readings, with eps shrunk.
        precise: The output with eps shrunk.
        plain: The output with eps as it is.
        generator: Source of the factors.
        confirmed: What `confirm` returned.
    """
    screen = Screen(subject, names, gradients)
    if screen.effect < _NOTHING:
        return Finding(None, None, 0.0, 0.0)
    for grouping in _candidates(subject, names, gradients, screen):
        scaled = dict.fromkeys(names, grouping)
        if (
            confirmed
            or _change(subject, scaled, precise, generator, shrink_eps=True)
            < _LIMIT * screen.effect
        ):
            change = _change(subject, scaled, plain, generator, shrink_eps=False)
            partial = None if grouping.is_whole else screen.partial()
            return Finding(grouping, partial, screen.effect, change)
    # The derivative has shown that the output changes; a forward pass would show no more.
    return Finding(None, screen.partial(), screen.effect, screen.radial)


def _change(
    subject: Subject,
    scaled: Mapping[str, Grouping],
    before: list[Tensor],
    generator: torch.Generator,
    *,
    shrink_eps: bool,
) -> float:
    """Relative change of the output when each group of each tensor is scaled by 0.5, 1 or 2."""
    factors: dict[Grouping, Tensor] = {}
    for grouping in scaled.values():
        # Weight and bias share theirs. Neighbours in the cycle differ, so two groups never agree.
        if grouping not in factors:
            count = len(grouping.sizes)
            order = torch.randperm(count, generator=generator, device="cpu")
            exponents = torch.arange(count, device="cpu")[order] % 3 - 1
            factors[grouping] = grouping.factors(torch.exp2(exponents.double()))
    rows = {name: Scaling(factors[g], g.folding) for name, g in scaled.items()}
    return relative_change(before, subject.outputs(shrink_eps=shrink_eps, scaled=rows))
