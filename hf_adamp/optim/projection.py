"""Decide: which updates lose their radial part, `Π_w(x) = x − (ŵ·x) ŵ`, and by how much.

The middle stage of a step (accumulate → decide → apply) and the only one that looks at more than
one element at a time. It sees five numbers a row, never a weight, so it costs a few small tensor
operations whatever the number of weights: no host sync, no loop over weights.

Source: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
Weights", ICLR 2021, https://arxiv.org/abs/2006.08217 (Algorithms 1 and 2; the test is section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, chain

import torch
from torch import Tensor

__all__ = [
    "Decision",
    "Extent",
    "Layout",
    "Segments",
    "Statistic",
    "StepRecord",
    "View",
    "Views",
    "choose_views",
    "cosine",
    "decide",
    "has_rows",
    "radial_part",
    "record",
    "shift_rows",
    "total",
]


class Statistic(IntEnum):
    """The rows of the statistics buffer; each holds one number for every row of every weight.

    `step` is the displacement before projection: learning rate times update direction.
    """

    DOT = 0  # g·w
    GRAD_SQ = 1  # |g|²
    WEIGHT_SQ = 2  # |w|²
    STEP_DOT = 3  # step·w
    STEP_SQ = 4  # |step|², filled only while records are kept


class View(IntEnum):
    """How a weight was seen when its update was projected."""

    NONE = 0  # not projected
    CHANNEL = 1  # every row on its own
    LAYER = 2  # the whole weight as one vector
    HEAD = 3  # every head on its own; only in records, to a backend it is LAYER


def has_rows(shape: torch.Size) -> bool:
    """Whether a weight of this shape takes part in the test: two dimensions or more, not empty."""
    return len(shape) > 1 and 0 not in shape


@dataclass(frozen=True)
class Extent:
    """How large a weight is: its rows here, and its columns and elements on all processes.

    `heads` are the rows here of each vector that a weight is declared to consist of; it is empty
    where the rows may stand for themselves.
    """

    rows: int
    columns: int
    numel: int
    heads: tuple[int, ...] = ()

    @classmethod
    def of(cls, shape: torch.Size, heads: int = 0) -> Extent:
        """The extent of a weight that is not sharded."""
        # The product, not reshape's -1, which is ambiguous where a dimension is 0.
        columns = math.prod(shape[1:])
        rows_of_heads = (shape[0] // heads,) * heads if heads else ()
        return cls(shape[0], columns, shape[0] * columns, rows_of_heads)

    @property
    def segments(self) -> int:
        """How many vectors the weight is, where its rows do not stand for themselves."""
        return len(self.heads) or 1


@dataclass(frozen=True)
class Segments:
    """Which rows make a vector, where a weight is declared to consist of several (heads).

    Attributes:
        weight: (S,) int64, the weight that a segment belongs to.
        row_segment: (R,) int64, the segment that a row belongs to.
        offsets: (W + 1,) int64, where each weight's segments begin.
    """

    weight: Tensor
    row_segment: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the rows of each weight lie in the buffer, and the limits its cosines are held against.

    Depends on shapes and options only, so it is built once and kept until the set of weights
    changes. W is the number of weights, R the number of rows of all of them, and S the number of
    segments: one a weight, or one a head where heads are declared.

    Attributes:
        extents: W extents.
        row_weight: (R,) int64, the weight that a row belongs to.
        offsets: (S + 1,) int64, where each segment's rows begin.
        channel_limit: (W,) `δ / √columns`; 0 where rows are declared not to stand for themselves.
        layer_limit: (S,) `δ / √numel`.
        eps: (S,) the optimizer's eps, which keeps the norms of zero rows off zero.
        row_eps: the same for each row, (R,), or a scalar where all have the same.
        segments: None where each weight is one.
    """

    extents: tuple[Extent, ...]
    row_weight: Tensor
    offsets: Tensor
    channel_limit: Tensor
    layer_limit: Tensor
    eps: Tensor
    row_eps: Tensor
    segments: Segments | None = None

    @classmethod
    def build(
        cls,
        extents: Sequence[Extent],
        deltas: Sequence[float],
        eps: Sequence[float],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Layout:
        """Lay out weights of these extents, one delta and one eps each, in this order."""
        rows = [extent.rows for extent in extents]
        counts = [extent.segments for extent in extents]
        parts = list(chain.from_iterable(e.heads or (e.rows,) for e in extents))

        def vector(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            # Two steps: building it on an accelerator at once would wait for the copy.
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        def owners(sizes: Sequence[int]) -> Tensor:
            indices = torch.arange(len(sizes), device=device)
            return torch.repeat_interleave(
                indices, vector(sizes, torch.int64), output_size=sum(sizes)
            )

        def starts(sizes: Sequence[int]) -> Tensor:
            return vector(list(accumulate(sizes, initial=0)), torch.int64)

        pairs = list(zip(deltas, extents, strict=True))
        row_weight = owners(rows)
        all_eps = vector(eps, dtype)
        layer_limit = vector([delta / math.sqrt(e.numel) for delta, e in pairs], dtype)
        segments = None
        if len(parts) > len(rows):
            segments = Segments(owners(counts), owners(parts), starts(counts))
        return cls(
            extents=tuple(extents),
            row_weight=row_weight,
            offsets=starts(parts),
            channel_limit=vector(
                [0.0 if e.heads else delta / math.sqrt(e.columns) for delta, e in pairs], dtype
            ),
            layer_limit=layer_limit if segments is None else layer_limit[segments.weight],
            eps=all_eps if segments is None else all_eps[segments.weight],
            row_eps=all_eps[0] if len(set(eps)) == 1 else all_eps[row_weight],
            segments=segments,
        )


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
    return torch.stack([_sum_rows(row, layout) for row in (*stats, fails.to(stats.dtype))])


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
        channel, layer = (_sum((~held).to(totals), offsets) == 0 for held in (channel, layer))
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


def _sum_rows(per_row: Tensor, layout: Layout) -> Tensor:
    return _sum(per_row, layout.offsets)


def _sum(values: Tensor, offsets: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class StepRecord:
    """What one step did to its weights, from the numbers it had computed anyway.

    Kept by an optimizer whose `record_steps` is true. Reading a value waits for the device; until
    then nothing does. W is the number of `params`, the weights with two dimensions or more.

    Attributes:
        params: the W weights, in the order of the tensors below.
        view: (W,) int8: 0 not projected, 1 channel view, 2 layer view, 3 head by head, as
            declared by `scale_invariant`.
        max_cosine: (W,) the largest `|cos(w_r, g_r)|` over the rows of a weight.
        channel_margin: (W,) `max_cosine · √columns`; the channel view fires below delta.
        layer_margin: (W,) `|cos(w, g)| · √numel`; the layer view fires below delta.
        weight_norm: (W,) `|w|` before the step.
        update_norm: (W,) `|Δw|`, weight decay and projection included.
        radial_share: (W,) share of the step along the weight before projection, `|step·ŵ|/|step|`.
    """

    params: tuple[Tensor, ...]
    view: Tensor
    max_cosine: Tensor
    channel_margin: Tensor
    layer_margin: Tensor
    weight_norm: Tensor
    update_norm: Tensor
    radial_share: Tensor


def record(
    params: Sequence[Tensor],
    stats: Tensor,
    totals: Tensor,
    layout: Layout,
    decision: Decision,
) -> StepRecord:
    """Derive the record of a step; all five statistics must have been written."""
    _, _, weight_sq, step_dot, step_sq = stats
    shift = decision.shift
    update_sq = shift.square() * weight_sq - 2 * shift * step_dot + step_sq
    row_cosine = cosine(stats, layout.row_eps)
    view, eps, offsets = decision.views.codes, layout.eps, layout.offsets
    if layout.segments is not None:
        begins = layout.segments.offsets
        totals = torch.stack([_sum(row, begins) for row in totals])
        eps, offsets = eps[begins[:-1]], offsets[begins]
        by_head = (begins.diff() > 1) & (view == View.LAYER)
        view = torch.where(by_head, View.HEAD, view).to(torch.int8)
    max_cosine = torch.segment_reduce(
        row_cosine, "max", offsets=offsets, axis=0, unsafe=True, initial=0.0
    )
    weight_norm, step_norm = (
        totals[Statistic.WEIGHT_SQ].sqrt(),
        totals[Statistic.STEP_SQ].sqrt(),
    )
    radial = totals[Statistic.STEP_DOT].abs() / weight_norm
    columns = torch.tensor([math.sqrt(e.columns) for e in layout.extents])
    numel = torch.tensor([math.sqrt(e.numel) for e in layout.extents])
    return StepRecord(
        params=tuple(params),
        view=view,
        max_cosine=max_cosine,
        channel_margin=max_cosine * columns.to(stats, non_blocking=True),
        layer_margin=cosine(totals, eps) * numel.to(stats, non_blocking=True),
        weight_norm=weight_norm,
        update_norm=_sum(update_sq, offsets).clamp(min=0).sqrt(),
        radial_share=(radial / step_norm).nan_to_num(nan=0.0),
    )
