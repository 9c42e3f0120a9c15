"""Which consecutive rows belong together, where groups are of unequal sizes.

Summed up from the first row on, `g·w` is back at the same value behind each group that is
invariant, for every gradient. Groups are found where it comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["partition"]

# Sums that differ by less, relative to all that is summed up, may be equal; the groups that follow
# are tested one by one.
_CLOSE = 1e-10


def partition(
    dot: Tensor, norm_sq: Tensor, alive: Tensor, limit: float, numel: int
) -> tuple[int, ...] | None:
    """Cut the rows into the finest groups of which some are invariant.

    Args:
        dot: (gradients, rows) `g·w`.
        norm_sq: (gradients, rows) `|g|²|w|²`.
        alive: (rows,) whether a row has an influence; the others go with those before them.
        limit: what `|cos(g, w)|·√dim` of an invariant group is below.
        numel: elements of all rows.

    Returns:
        The rows of each group, negative where the group is not invariant; None where all are.
    """
    index = alive.nonzero().flatten()
    if len(index) < 2:
        return None
    dot, norm = dot[:, index], norm_sq[:, index].sqrt()
    width = numel / len(alive)
    intervals = [
        (begin, end)
        for begin, end in _returns(dot / norm.sum(1, keepdim=True))
        if _is_invariant(dot[:, begin:end], norm[:, begin:end], limit, width)
    ]
    found = list(_apart(intervals))
    if not found:
        return None
    # From positions among the living rows to rows.
    starts = [0, *index[1:].tolist(), len(alive)]
    sizes: list[int] = []
    at = 0
    for begin, end in (*found, (len(index), len(index))):
        if begin > at:
            sizes.append(starts[at] - starts[begin])
        if end > begin:
            sizes.append(starts[end] - starts[begin])
        at = end
    return tuple(sizes)


def _returns(steps: Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of what lies between two neighbouring places where the sums are the same."""
    sums = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], dim=1)
    order = sums[0].argsort(stable=True)
    gaps = (sums[:, order].diff(dim=1).abs() > _CLOSE).any(0)
    classes = torch.cat([torch.zeros(1, dtype=torch.long, device=gaps.device), gaps.cumsum(0)])
    places: dict[int, list[int]] = {}
    for place, kind in zip(order.tolist(), classes.tolist(), strict=True):
        places.setdefault(kind, []).append(place)
    for alike in places.values():
        yield from pairwise(sorted(alike))


def _is_invariant(dot: Tensor, norm: Tensor, limit: float, width: float) -> bool:
    """Whether the derivative along the rows vanishes for each gradient, as `Screen` asks it."""
    rows = dot.shape[1]
    # |g||w| of the group is at least this.
    lengths = norm.square().sum(1).sqrt()
    return bool((dot.sum(1).abs() * math.sqrt(rows * width) < limit * lengths).all())


def _apart(intervals: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """As many of the intervals as do not overlap."""
    last = 0
    for begin, end in sorted(intervals, key=lambda interval: interval[1]):
        if begin >= last:
            yield begin, end
            last = end
