"""What the probe found out about one weight, and about weights that are alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Family", "Granularity", "WeightReport", "families", "granularity_of"]

Granularity = str | tuple[str, int] | None

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class WeightReport:
    """One weight of two dimensions or more.

    Attributes:
        name: Its name in `model.named_parameters()`.
        module: The class of its module.
        shape: Its shape; a row is what lies behind one index of the first dimension.
        groups: The largest number of equal groups of consecutive rows that can each be scaled by a
            factor of its own without changing the output. None: scaling changes it.
        change: Relative change of the output when the groups (without groups: all rows together)
            are scaled by 0.5, 1 and 2, with the eps of the model's norms in place.
        effect: Relative change of the output, to first order, by a random change of the weight as
            large as the weight; 0 where the weight has no influence on this output.
        cosine: The largest `|g·w|/(|g||w|)` over the groups (without groups: of the whole weight)
            and over the gradients drawn. None without effect.
        channel: Share of the gradients on which AdamP's test chooses the channel view (rows).
        layer: Share on which it chooses the layer view (the weight as one vector).
        with_bias: The groups if the module's bias is scaled too, where that finds finer ones.
        partial: A number of groups and the share of them that can be scaled, where it is some but
            not all, as in a fused query-key-value weight.
        like: The weight that was probed in its stead: same module, same shape, another layer.
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

    @property
    def granularity(self) -> Granularity:
        """None, "row", "tensor" or ("head", number of groups)."""
        return granularity_of(self.groups, self.shape[0])

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def caught(self) -> float | None:
        """Share of gradients on which the test chose the right view; None without groups.

        The views know rows and whole weights only: for heads the layer view is the closest that is
        right, because what is invariant by head is invariant as a whole.
        """
        if self.groups is None:
            return None
        return self.channel if self.granularity == "row" else self.layer

    @property
    def misfires(self) -> float:
        """Share of gradients on which the test chose a view that is not invariant."""
        if self.groups is None:
            return self.channel + self.layer
        return 0.0 if self.granularity == "row" else self.channel


def granularity_of(groups: int | None, rows: int) -> Granularity:
    """Name a number of groups of rows."""
    if groups is None:
        return None
    if groups == 1:
        return "tensor"
    return "row" if groups == rows else ("head", groups)


@dataclass(frozen=True)
class Family:
    """Weights that differ by the numbers in their names only, and came out alike."""

    pattern: str
    members: tuple[WeightReport, ...]

    @property
    def first(self) -> WeightReport:
        """The member whose class and granularity all share."""
        return self.members[0]

    @property
    def numel(self) -> int:
        """Elements of all members."""
        return sum(member.numel for member in self.members)

    def mean(self, value: Callable[[WeightReport], float]) -> float:
        """The mean of a number over the members."""
        return sum(map(value, self.members)) / len(self.members)


def families(weights: Iterable[WeightReport]) -> list[Family]:
    """Gather the weights into families, in the order of their first members."""
    found: dict[tuple[object, ...], list[WeightReport]] = {}
    for weight in weights:
        pattern = _NUMBER.sub("*", weight.name)
        kind = (pattern, weight.module, weight.granularity, weight.with_bias, weight.effect == 0)
        found.setdefault(kind, []).append(weight)
    return [
        Family(members[0].name if len(members) == 1 else str(kind[0]), tuple(members))
        for kind, members in found.items()
    ]
