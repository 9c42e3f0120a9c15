"""The finest equal groups of rows that can be scaled on their own without any effect.

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

from hf_adamp.diagnostics.probe.evaluation import Gradients, Subject, relative_change

__all__ = ["Finding", "Screen", "confirm", "find"]

# `|cos(g, w)|·√dim` is about 1 for a random direction, whatever the dimension. In the tests' models
# it is at most 4e-14 for invariant weights, and at least 0.04 for the others.
_LIMIT = 1e-6
# A weight that changes the output by less has no effect on it: on one pixel a depthwise row is a
# single number, which the norm behind it divides out but for what remains of its eps, 3e-10.
_NOTHING = 1e-8
# A group whose influence is a smaller share of the strongest group's has none.
_DEAD = 1e-6


@dataclass(frozen=True)
class Finding:
    """What scaling a weight does.

    Attributes:
        groups: number of equal groups of rows that can be scaled on their own; None: not even all
            rows together.
        partial: number of groups, and the share of them (between 0 and 1) that can be scaled,
            where it is not all.
        effect: relative change of the output by a random change of the weight of the same size; 0
            where the weight has no influence.
        change: relative change of the output by scaling, with eps as it is; to first order where
            there are no groups.
    """

    groups: int | None
    partial: tuple[int, float] | None
    effect: float
    change: float


class Screen:
    """Row statistics of one weight, or of a weight and its bias, over some gradients.

    Args:
        subject: The model.
        names: The tensors that are scaled together, with the same number of rows.
        gradients: At least one.
    """

    def __init__(
        self, subject: Subject, names: Sequence[str], gradients: Sequence[Gradients]
    ) -> None:
        self.rows = subject.copies[names[0]].shape[0]
        self.numel = sum(subject.copies[name].numel() for name in names)
        self.weight_sq = torch.stack([subject.squares[name] for name in names]).sum(0)
        # (gradients, rows)
        self.dot, self.grad_sq = (
            torch.stack([sum(part[name] for name in names) for part in parts])  # type: ignore[misc]
            for parts in zip(*gradients, strict=True)
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

    def groupings(self) -> Iterator[int]:
        """Every number of equal groups, the finest first."""
        small = [i for i in range(1, math.isqrt(self.rows) + 1) if self.rows % i == 0]
        yield from sorted({*small, *(self.rows // i for i in small)}, reverse=True)


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
    screens = {name: Screen(subject, [name], gradients) for name in names}
    candidates = {
        name: next((n for n in screen.groupings() if screen.share(n) == 1), None)
        for name, screen in screens.items()
        if screen.effect >= _NOTHING
    }
    scaled = {name: n for name, n in candidates.items() if n is not None}
    effect = min((screens[name].effect for name, n in candidates.items() if n), default=0.0)
    return _change(subject, scaled, precise, generator, shrink_eps=True) < _LIMIT * effect


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
    partial: tuple[int, float] | None = None
    for groups in screen.groupings():
        share = screen.share(groups)
        scaled = dict.fromkeys(names, groups)
        if share == 1 and (
            confirmed
            or _change(subject, scaled, precise, generator, shrink_eps=True)
            < _LIMIT * screen.effect
        ):
            change = _change(subject, scaled, plain, generator, shrink_eps=False)
            return Finding(groups, None, screen.effect, change)
        if 0 < share < 1 and (partial is None or share > partial[1]):
            partial = groups, share
    # The derivative has shown that the output changes; a forward pass would show no more.
    return Finding(None, partial, screen.effect, screen.radial)


def _change(
    subject: Subject,
    scaled: Mapping[str, int],
    before: list[Tensor],
    generator: torch.Generator,
    *,
    shrink_eps: bool,
) -> float:
    """Relative change of the output when each group of each tensor is scaled by 0.5, 1 or 2."""
    factors: dict[int, Tensor] = {}
    for groups in scaled.values():
        # Weight and bias share theirs. Neighbours in the cycle differ, so two groups never agree.
        if groups not in factors:
            order = torch.randperm(groups, generator=generator, device="cpu")
            exponents = torch.arange(groups, device="cpu")[order] % 3 - 1
            factors[groups] = torch.exp2(exponents.double())
    rows = {
        name: factors[groups].to(subject.copies[name].device) for name, groups in scaled.items()
    }
    return relative_change(before, subject.outputs(shrink_eps=shrink_eps, scaled=rows))
