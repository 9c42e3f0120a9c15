"""What a step did to its weights, from numbers that it computes anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Statistic
from .projection import Decision, View, cosine, sum_segments

__all__ = ["StepRecord", "record"]


@dataclass(frozen=True)
class StepRecord:
    """What one step did to its weights.

    An optimizer keeps it if `record_steps` is True. It is made from numbers that the step computes
    anyway, and nothing waits for the device until a value is read. W is the number of `params`, the
    weights with two dimensions or more.

    Attributes:
        params: the W weights, in the order of the tensors below.
        view: (W,) int8: 0 not projected, 1 channel view, 2 layer view, 3 per head, as declared by
            `scale_invariant`.
        max_cosine: (W,) the largest `|cos(w_r, g_r)|` over the rows of a weight.
        channel_margin: (W,) `max_cosine · √columns`; the channel view fires below delta.
        layer_margin: (W,) `|cos(w, g)| · √numel`; the layer view fires below delta.
        weight_norm: (W,) `|w|` before the step.
        update_norm: (W,) `|Δw|`, with weight decay and projection.
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
    stepped: Sequence[bool],
) -> StepRecord | None:
    """Derive the record of a step; all five statistics must have been written.

    `stepped` says for each weight whether it had a gradient. Weights without one are left out; if
    none had one there is no record.
    """
    if not any(stepped):
        return None
    _, _, weight_sq, step_dot, step_sq = stats
    shift = decision.shift
    # |shift · w − step|², of sums that are there: the update itself is nowhere kept.
    update_sq = shift.square() * weight_sq - 2 * shift * step_dot + step_sq
    row_cosine = cosine(stats, layout.row_eps)
    view, eps, offsets = decision.views.codes, layout.eps, layout.offsets
    # Heads: totals are those of each, and a record has one value a weight.
    if layout.segments is not None:
        begins = layout.segments.offsets
        totals = torch.stack([sum_segments(row, begins) for row in totals])
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
    columns, numel = (
        torch.tensor(roots, dtype=torch.float64, device="cpu")
        for roots in (
            [math.sqrt(extent.columns) for extent in layout.extents],
            [math.sqrt(extent.numel) for extent in layout.extents],
        )
    )
    values = (
        view,
        max_cosine,
        max_cosine * columns.to(stats, non_blocking=True),
        cosine(totals, eps) * numel.to(stats, non_blocking=True),
        weight_norm,
        sum_segments(update_sq, offsets).clamp(min=0).sqrt(),
        (radial / step_norm).nan_to_num(nan=0.0),
    )
    if all(stepped):
        return StepRecord(tuple(params), *values)
    at = torch.tensor([i for i, had in enumerate(stepped) if had], device="cpu")
    at = at.to(stats.device, non_blocking=True)
    kept = [param for param, had in zip(params, stepped, strict=True) if had]
    return StepRecord(tuple(kept), *(value[at] for value in values))
