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

import torch
from torch import Tensor

__all__ = [
    "Decision",
    "Layout",
    "Statistic",
    "StepRecord",
    "View",
    "Views",
    "choose_views",
    "decide",
    "has_rows",
    "radial_part",
    "record",
    "shift_rows",
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


def has_rows(shape: torch.Size) -> bool:
    """Whether a weight of this shape takes part in the test: two dimensions or more, not empty."""
    return len(shape) > 1 and 0 not in shape


@dataclass(frozen=True)
class Layout:
    """Where the rows of each weight lie in the buffer, and the limits its cosines are held against.

    Depends on shapes and options only, so it is built once and kept until the set of weights
    changes. W is the number of weights, R the number of rows of all of them.

    Attributes:
        rows: rows of each weight, Python integers.
        columns: elements in a row of each weight, Python integers.
        row_weight: (R,) int64, the weight that a row belongs to.
        offsets: (W + 1,) int64, where each weight's rows begin.
        channel_limit: (W,) `δ / √columns`.
        layer_limit: (W,) `δ / √numel`.
        eps: (W,) the optimizer's eps, which keeps the norms of zero rows off zero.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    row_weight: Tensor
    offsets: Tensor
    channel_limit: Tensor
    layer_limit: Tensor
    eps: Tensor

    @classmethod
    def build(
        cls,
        shapes: Sequence[torch.Size],
        deltas: Sequence[float],
        eps: Sequence[float],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Layout:
        """Lay out weights of these shapes, one delta and one eps each, in this order."""
        rows = [shape[0] for shape in shapes]
        # The product, not reshape's -1, which is ambiguous where a dimension is 0.
        columns = [math.prod(shape[1:]) for shape in shapes]
        starts = [0]
        for count in rows:
            starts.append(starts[-1] + count)

        def vector(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            # Two steps: building it on an accelerator at once would wait for the copy.
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        limits = list(zip(deltas, rows, columns, strict=True))
        return cls(
            rows=tuple(rows),
            columns=tuple(columns),
            row_weight=torch.repeat_interleave(
                torch.arange(len(rows), device=device),
                vector(rows, torch.int64),
                output_size=starts[-1],
            ),
            offsets=vector(starts, torch.int64),
            channel_limit=vector([d / math.sqrt(c) for d, _, c in limits], dtype),
            layer_limit=vector([d / math.sqrt(r * c) for d, r, c in limits], dtype),
            eps=vector(eps, dtype),
        )


@dataclass(frozen=True)
class Views:
    """How every weight of a step is seen, and the cosines that decided it.

    Attributes:
        channel: (W,) bool, projected row by row.
        layer: (W,) bool, projected as one vector; never where `channel` is true.
        max_cosine: (W,) the largest `|cos(w_r, g_r)|` over the rows of a weight.
        layer_cosine: (W,) `|cos(w, g)|` of the whole weight.
    """

    channel: Tensor
    layer: Tensor
    max_cosine: Tensor
    layer_cosine: Tensor

    @property
    def codes(self) -> Tensor:
        """(W,) int8, a `View` for each weight."""
        return (self.channel * View.CHANNEL + self.layer * View.LAYER).to(torch.int8)


def choose_views(stats: Tensor, layout: Layout) -> Views:
    """Hold every weight against the test (Algorithm 2, lines 8 to 12).

    A weight is projected row by row where `max_r |cos(w_r, g_r)| < δ/√columns` (channel view),
    else as one vector where `|cos(w, g)| < δ/√numel` (layer view), else not at all. A cosine
    that is not a number projects nothing, so NaN and Inf gradients have AdamW's outcome.

    Args:
        stats: (5, R) buffer; `DOT`, `GRAD_SQ` and `WEIGHT_SQ` are read.
        layout: the rows of the buffer.
    """
    max_cosine = _per_weight("max", _cosine(stats, layout.eps[layout.row_weight]), layout)
    layer_cosine = _cosine(_totals(stats[: Statistic.STEP_DOT], layout), layout.eps)
    channel = max_cosine < layout.channel_limit
    return Views(
        channel=channel,
        layer=~channel & (layer_cosine < layout.layer_limit),
        max_cosine=max_cosine,
        layer_cosine=layer_cosine,
    )


def shift_rows(
    stats: Tensor, layout: Layout, views: Views, decay: Tensor, projected_decay: Tensor
) -> Tensor:
    """The multiple of each row that a step adds: `w ← w + (shift · w − step)`.

    It is the step's radial part where the row is projected, `(step·w) / (|w| + eps)²`, less
    weight decay (Algorithm 2, lines 9, 11 and 13). A shift is held instead of the scale
    `1 + shift`, which float32 would round to 1 where the learning rate is small.

    Args:
        stats: (5, R) buffer; `WEIGHT_SQ` and `STEP_DOT` are read.
        layout: the rows of the buffer.
        views: what `choose_views` chose.
        decay: (W,) what weight decay takes from a weight that is not projected, `lr · λ`.
        projected_decay: (W,) the same for one that is, `lr · λ · wd_ratio`.

    Returns:
        (R,) the shifts.
    """
    weight_decay = torch.where(views.channel | views.layer, projected_decay, decay)
    whole = radial_part(_totals(stats[: Statistic.STEP_SQ], layout), layout.eps)
    in_channel, in_layer, whole_part, row_decay, row_eps = (
        per_weight[layout.row_weight]
        for per_weight in (views.channel, views.layer, whole, weight_decay, layout.eps)
    )
    # where, not a product: 0 times a part that is not a number would spoil the row.
    layer_part = torch.where(in_layer, whole_part, 0.0)
    return torch.where(in_channel, radial_part(stats, row_eps), layer_part) - row_decay


@dataclass(frozen=True)
class Decision:
    """The second stage's outcome: the `Views` of W weights and the `shift_rows` of R rows."""

    views: Views
    shift: Tensor


def decide(stats: Tensor, layout: Layout, decay: Tensor, projected_decay: Tensor) -> Decision:
    """Choose the views, size the shifts; arguments as in `choose_views` and `shift_rows`."""
    views = choose_views(stats, layout)
    return Decision(views, shift_rows(stats, layout, views, decay, projected_decay))


def _totals(stats: Tensor, layout: Layout) -> Tensor:
    return torch.stack([_per_weight("sum", row, layout) for row in stats])


def _per_weight(reduction: str, per_row: Tensor, layout: Layout) -> Tensor:
    # Unlike index_add, a segmented sum adds in one order on a GPU too: runs repeat bit for bit.
    # `unsafe` skips a check of the offsets that would wait for the device.
    return torch.segment_reduce(per_row, reduction, offsets=layout.offsets, axis=0, unsafe=True)


def _cosine(stats: Tensor, eps: Tensor) -> Tensor:
    """`|cos(w, g)|` with each norm kept at eps or above, as `F.cosine_similarity` does."""
    grad_norm = stats[Statistic.GRAD_SQ].sqrt().clamp(min=eps)
    weight_norm = stats[Statistic.WEIGHT_SQ].sqrt().clamp(min=eps)
    cosine = (stats[Statistic.DOT] / (grad_norm * weight_norm)).abs()
    # What is not a number must lose every comparison, in a maximum too.
    return cosine.nan_to_num(nan=math.inf, posinf=math.inf)


def radial_part(stats: Tensor, eps: Tensor | float) -> Tensor:
    """The step's component along the weight in units of the weight: `step·w / (|w| + eps)²`."""
    return stats[Statistic.STEP_DOT] / (stats[Statistic.WEIGHT_SQ].sqrt() + eps).square()


@dataclass(frozen=True)
class StepRecord:
    """What one step did to its weights, from the numbers it had computed anyway.

    Kept by an optimizer whose `record_steps` is true. Reading a value waits for the device; until
    then nothing does. W is the number of `params`, the weights with two dimensions or more.

    Attributes:
        params: the W weights, in the order of the tensors below.
        view: (W,) int8: 0 not projected, 1 channel view, 2 layer view.
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
    params: Sequence[Tensor], stats: Tensor, layout: Layout, views: Views, shift: Tensor
) -> StepRecord:
    """Derive the record of a step; `stats` must hold all five statistics."""
    weight_sq, step_dot, step_sq = stats[Statistic.WEIGHT_SQ :]
    update_sq = shift.square() * weight_sq - 2 * shift * step_dot + step_sq
    weight_norm, update_norm, step_norm = (
        _per_weight("sum", square, layout).clamp(min=0).sqrt()
        for square in (weight_sq, update_sq, step_sq)
    )
    radial = _per_weight("sum", step_dot, layout).abs() / weight_norm
    columns = torch.tensor([math.sqrt(c) for c in layout.columns]).to(stats, non_blocking=True)
    numel = torch.tensor([math.sqrt(p.numel()) for p in params]).to(stats, non_blocking=True)
    return StepRecord(
        params=tuple(params),
        view=views.codes,
        max_cosine=views.max_cosine,
        channel_margin=views.max_cosine * columns,
        layer_margin=views.layer_cosine * numel,
        weight_norm=weight_norm,
        update_norm=update_norm,
        radial_share=(radial / step_norm).nan_to_num(nan=0.0),
    )
