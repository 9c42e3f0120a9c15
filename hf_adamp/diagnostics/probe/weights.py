"""The probe's result for one weight, and for families of similar weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Family", "Granularity", "WeightReport", "families", "granularity_of", "in_words"]

Granularity = str | tuple[str, int | str | tuple[int, ...]] | None

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class WeightReport:
    """One weight of two dimensions or more.

    Attributes:
        name: Its name in `model.named_parameters()`.
        module: The class of its module.
        shape: Its shape; a row is one index of the first dimension.
        groups: The largest number of equal groups of consecutive rows that can each be scaled by
            its own factor without changing the output. None: scaling changes the output.
        change: Relative change of the output when the groups (without groups: all rows together)
            are scaled by 0.5, 1 and 2, with the eps of the model's norms in place.
        effect: Relative change of the output, to first order, by a random change of the weight as
            large as the weight; 0 if the weight has no influence on this output.
        cosine: The largest `|g·w|/(|g||w|)` over the groups (without groups: of the whole weight)
            and over the gradients. None without effect.
        channel: Share of the gradients for which AdamP's test chooses the channel view (rows).
        layer: Share for which it chooses the layer view (the weight as one vector).
        with_bias: The groups if the module's bias is scaled too, if these are finer.
        partial: A number of groups and the share of them that can be scaled, if some but not all
            can, as in a fused query-key-value weight.
        sizes: The rows of each group, if groups differ in size or some cannot be scaled; negative
            for those.
        stack: "out_in" or "in_out" if the weight is a stack of experts, (experts, out, in) or
            (experts, in, out), and each output of each expert can be scaled.
        like: The weight that was probed in its place: same module and shape, another layer.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    groups: int | None
    change: float
    effect: float
    cosine: float | None
    channel: float
    layer: float
    with_bias: int | None = None
    partial: tuple[int, float] | None = None
    like: str | None = None
    sizes: tuple[int, ...] | None = None
    stack: str | None = None

    @property
    def granularity(self) -> Granularity:
        """A value of `scale_invariant`, or None: "row", "tensor" or a pair.

        The pairs are ("head", number of groups), ("rows", `sizes`) and ("experts", `stack`).
        """
        if self.stack is not None:
            return "experts", self.stack
        if self.sizes is not None:
            return "rows", self.sizes
        return granularity_of(self.groups, self.shape[0])

    @property
    def invariant_numel(self) -> int:
        """Number of elements in invariant groups."""
        if self.granularity is None:
            return 0
        if self.sizes is None:
            return self.numel
        return self.numel * sum(rows for rows in self.sizes if rows > 0) // self.shape[0]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def caught(self) -> float | None:
        """Share of gradients for which the test chose a valid view; None without groups.

        There are views for rows and whole weights only. For heads the layer view is valid, because
        a weight that is invariant per head is invariant as a whole. For a stack of experts both are
        valid, since the test sees experts as rows. If a part is not invariant, neither is valid.
        """
        if self.granularity is None:
            return None
        if self.granularity == "row":
            return self.channel
        layer = self.layer if self._is_whole else 0.0
        return layer if self.stack is None else self.channel + layer

    @property
    def misfires(self) -> float:
        """Share of gradients for which the test chose a view that is not invariant."""
        if not self._is_whole:
            return self.channel + self.layer
        return 0.0 if self.granularity == "row" or self.stack is not None else self.channel

    @property
    def _is_whole(self) -> bool:
        """Whether the weight as a whole can be scaled."""
        return self.invariant_numel == self.numel


def granularity_of(groups: int | None, rows: int) -> Granularity:
    """The granularity of this number of groups."""
    if groups is None:
        return None
    if groups == 1:
        return "tensor"
    return "row" if groups == rows else ("head", groups)


def in_words(granularity: Granularity) -> str:
    """A granularity as tables show it: head (8), rows (512 − 64), experts (out_in)."""
    if granularity is None or isinstance(granularity, str):
        return granularity or "–"
    unit, second = granularity
    if not isinstance(second, tuple):
        return f"{unit} ({second})"
    runs = [(size, len(list(run))) for size, run in groupby(second)]
    words = [f"{count}×{abs(size)}" if count > 1 else str(abs(size)) for size, count in runs]
    signs = ["−" if size < 0 else "+" for size, _ in runs]
    text = " ".join(f"{sign} {word}" for sign, word in zip(signs, words, strict=True))
    return f"{unit} ({text.removeprefix('+ ')})"


@dataclass(frozen=True)
class Family:
    """Weights whose names differ only in numbers, with the same result."""

    pattern: str
    members: tuple[WeightReport, ...]

    @property
    def first(self) -> WeightReport:
        """The first member; all have its class and granularity."""
        return self.members[0]

    @property
    def numel(self) -> int:
        """Elements of all members."""
        return sum(member.numel for member in self.members)

    def mean(self, value: Callable[[WeightReport], float]) -> float:
        """The mean of a number over the members."""
        return sum(map(value, self.members)) / len(self.members)


def families(weights: Iterable[WeightReport]) -> list[Family]:
    """Group the weights into families, in the order of their first members."""
    found: dict[tuple[object, ...], list[WeightReport]] = {}
    for weight in weights:
        pattern = _NUMBER.sub("*", weight.name)
        kind = (pattern, weight.module, weight.granularity, weight.with_bias, weight.effect == 0)
        found.setdefault(kind, []).append(weight)
    return [
        Family(members[0].name if len(members) == 1 else str(kind[0]), tuple(members))
        for kind, members in found.items()
    ]
