"""Decide: which updates lose their radial part, `Π_w(x) = x − (ŵ·x) ŵ`, and by how much.

The middle stage of a step (accumulate → decide → apply) and the only one that looks at more than
one element at a time. It sees five numbers a row, never a weight, so it costs a few small tensor
operations whatever the number of weights: no host sync, no loop over weights.

Source: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
Weights", ICLR 2021, https://arxiv.org/abs/2006.08217 (Algorithms 1 and 2; the test is section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .layout import Layout, Statistic

__all__ = [
    "Decision",
    "View",
    "Views",
    "choose_views",
    "cosine",
    "decide",
    "radial_part",
    "shift_rows",
    "sum_segments",
    "total",
]


class View(IntEnum):
    """How a weight was seen when its update was projected."""

    NONE = 0  # not projected
    CHANNEL = 1  # every row on its own
    LAYER = 2  # the whole weight as one vector
    HEAD = 3  # every head on its own; only in records, to a backend it is LAYER


@dataclass(frozen=True)
class Views:
    """How every weight of a step is seen.

    Attributes:
        channel: (W,) bool, projected row by row.
        layer: (W,) bool, projected as one vector; never where `channel` is true.
    """

    channel: Tensor
    layer: Tensor

    @property
    def codes(self) -> Tensor:
        """(W,) int8, a `View` for each weight; LAYER where every head is seen on its own."""
        return (self.channel * View.CHANNEL + self.layer * View.LAYER).to(torch.int8)


def total(stats: Tensor, layout: Layout) -> Tensor:
    """Sum up the rows of each segment, which is a weight or a head.

    Args:
        stats: (5, R) buffer, see `Statistic`.
        layout: the rows of the buffer.

    Returns:
        (6, S): the five statistics of whole segments and, last, how many of their rows fail the
        channel view's test. All are sums, so where rows are spread over processes one all-reduce
        makes them whole.
    """
    row_cosine = cosine(stats, layout.row_eps)
    fails = ~(row_cosine < layout.channel_limit[layout.row_weight])
    rows = [*stats, fails.to(stats.dtype)]
    if layout.counted is not None:
        # where, not a product: 0 times a sum that is not a number would spoil the weight.
        rows = [torch.where(layout.counted > 0, row, 0.0) for row in rows]
    return torch.stack([sum_segments(row, layout.offsets) for row in rows])


def choose_views(totals: Tensor, layout: Layout) -> Views:
    """Hold every weight against the test (Algorithm 2, lines 8 to 12).

    A weight is projected row by row where `max_r |cos(w_r, g_r)| < δ/√columns` (channel view),
    else as one vector where `|cos(w, g)| < δ/√numel` (layer view), else not at all. A cosine
    that is not a number projects nothing, so NaN and Inf gradients have AdamW's outcome. Where
    heads are declared they are projected one by one, all of them or none.

    Args:
        totals: (6, S) what `total` returns.
        layout: the limits.
    """
    channel = totals[len(Statistic)] == 0
    layer = cosine(totals, layout.eps) < layout.layer_limit
    if layout.segments is not None:
        offsets = layout.segments.offsets
        channel, layer = (
            sum_segments((~held).to(totals), offsets) == 0 for held in (channel, layer)
        )
    return Views(channel, ~channel & layer)


def shift_rows(
    stats: Tensor,
    totals: Tensor,
    layout: Layout,
    views: Views,
    decay: Tensor,
    projected_decay: Tensor,
) -> Tensor:
    """The multiple of each row that a step adds: `w ← w + (shift · w − step)`.

    It is the step's radial part where the row is projected, `(step·w) / (|w| + eps)²`, less
    weight decay (Algorithm 2, lines 9, 11 and 13). A shift is held instead of the scale
    `1 + shift`, which float32 would round to 1 where the learning rate is small.

    Args:
        stats: (5, R) buffer; `WEIGHT_SQ` and `STEP_DOT` are read.
        totals: (6, S) what `total` returns, read likewise.
        layout: the rows of the buffer.
        views: what `choose_views` chose.
        decay: (W,) what weight decay takes from a weight that is not projected, `lr · λ`.
        projected_decay: (W,) the same for one that is, `lr · λ · wd_ratio`.

    Returns:
        (R,) the shifts.
    """
    weight_decay = torch.where(views.channel | views.layer, projected_decay, decay)
    layer, row_segment = views.layer, layout.row_weight
    if layout.segments is not None:
        row_segment = layout.segments.row_segment
        layer, weight_decay = layer[layout.segments.weight], weight_decay[layout.segments.weight]
        free = layout.segments.free
        if free is not None:
            layer = layer & ~free
            weight_decay = torch.where(free, decay[layout.segments.weight], weight_decay)
    # where, not a product: 0 times a part that is not a number would spoil the row.
    layer_part = torch.where(layer, radial_part(totals, layout.eps), 0.0)
    channel_part = torch.where(
        views.channel[layout.row_weight], radial_part(stats, layout.row_eps), 0.0
    )
    return channel_part + (layer_part - weight_decay)[row_segment]


@dataclass(frozen=True)
class Decision:
    """The second stage's outcome: the `Views` of W weights and the `shift_rows` of R rows."""

    views: Views
    shift: Tensor


def decide(
    stats: Tensor, totals: Tensor, layout: Layout, decay: Tensor, projected_decay: Tensor
) -> Decision:
    """Choose the views and the shifts that follow from them; see there for the arguments."""
    views = choose_views(totals, layout)
    return Decision(views, shift_rows(stats, totals, layout, views, decay, projected_decay))


def sum_segments(values: Tensor, offsets: Tensor) -> Tensor:
    """Add up the values between each two offsets."""
    # Unlike index_add, a segmented sum adds in one order on a GPU too: runs repeat bit for bit.
    # `unsafe` skips a check of the offsets that would wait for the device.
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True)


def cosine(stats: Tensor, eps: Tensor) -> Tensor:
    """`|cos(w, g)|` with each norm kept at eps or above, as `F.cosine_similarity` does.

    NaN where gradient or weight is not finite, which loses every comparison.
    """
    grad_norm = _root(stats[Statistic.GRAD_SQ]).clamp(min=eps)
    weight_norm = _root(stats[Statistic.WEIGHT_SQ]).clamp(min=eps)
    return (stats[Statistic.DOT] / (grad_norm * weight_norm)).abs()


def radial_part(stats: Tensor, eps: Tensor | float) -> Tensor:
    """The step's component along the weight in units of the weight: `step·w / (|w| + eps)²`."""
    return stats[Statistic.STEP_DOT] / (_root(stats[Statistic.WEIGHT_SQ]) + eps).square()


def _root(square: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return square.sqrt()
    # The derivative at 0 is infinite; a zero row (padding) must not make it NaN behind a `where`.
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
