"""The Triton kernels of `cuda_decision.py`: sums of segments, then views and shifts.

One program works on one segment (a weight, or a head of one), then one on one weight, which may
have many. Rows are added up in a fixed order, so runs repeat bit for bit.
"""

# Triton's language, not Python's: see cuda_kernels.py.
# ruff: noqa: ANN001, ANN202, ANN201, N803
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["decide", "total"]

# As in projection.Statistic.
_DOT = tl.constexpr(0)
_GRAD_SQ = tl.constexpr(1)
_WEIGHT_SQ = tl.constexpr(2)
_STEP_DOT = tl.constexpr(3)
_STEP_SQ = tl.constexpr(4)
_FAILS = tl.constexpr(5)


@triton.jit
def _cosine(dot, grad_sq, weight_sq, eps):
    # maximum must pass NaN on: a gradient that is not finite projects nothing.
    grad_norm = tl.maximum(tl.sqrt_rn(grad_sq), eps, propagate_nan=tl.PropagateNan.ALL)
    weight_norm = tl.maximum(tl.sqrt_rn(weight_sq), eps, propagate_nan=tl.PropagateNan.ALL)
    return tl.abs(tl.div_rn(dot, grad_norm * weight_norm))


@triton.jit
def _radial_part(step_dot, weight_sq, eps):
    norm = tl.sqrt_rn(weight_sq) + eps
    return tl.div_rn(step_dot, norm * norm)


@triton.jit
def total(
    stats, stride, offsets, segment_weight, limit, eps, totals, segments,
    HAS_SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`projection.total` of one segment."""
    segment = tl.program_id(0)
    begin = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    weight = tl.load(segment_weight + segment) if HAS_SEGMENTS else segment
    own_limit = tl.load(limit + weight)
    own_eps = tl.load(eps + segment)
    dots = tl.zeros([BLOCK], tl.float32)
    grad_sqs = tl.zeros([BLOCK], tl.float32)
    weight_sqs = tl.zeros([BLOCK], tl.float32)
    step_dots = tl.zeros([BLOCK], tl.float32)
    step_sqs = tl.zeros([BLOCK], tl.float32)
    fails = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        exists = row < end
        dot = tl.load(stats + _DOT * stride + row, exists, other=0.0)
        grad_sq = tl.load(stats + _GRAD_SQ * stride + row, exists, other=0.0)
        weight_sq = tl.load(stats + _WEIGHT_SQ * stride + row, exists, other=0.0)
        passes = _cosine(dot, grad_sq, weight_sq, own_eps) < own_limit
        dots += dot
        grad_sqs += grad_sq
        weight_sqs += weight_sq
        step_dots += tl.load(stats + _STEP_DOT * stride + row, exists, other=0.0)
        step_sqs += tl.load(stats + _STEP_SQ * stride + row, exists, other=0.0)
        fails += tl.where(exists, tl.where(passes, 0.0, 1.0), 0.0)
    tl.store(totals + _DOT * segments + segment, tl.sum(dots, 0))
    tl.store(totals + _GRAD_SQ * segments + segment, tl.sum(grad_sqs, 0))
    tl.store(totals + _WEIGHT_SQ * segments + segment, tl.sum(weight_sqs, 0))
    tl.store(totals + _STEP_DOT * segments + segment, tl.sum(step_dots, 0))
    tl.store(totals + _STEP_SQ * segments + segment, tl.sum(step_sqs, 0))
    tl.store(totals + _FAILS * segments + segment, tl.sum(fails, 0))


@triton.jit
def _view(totals, segments, first, last, limit, eps):
    """Whether no row of a weight fails, and whether all of its segments pass as vectors."""
    failed = 0.0
    missed = 0.0
    for segment in range(first, last):
        failed += tl.load(totals + _FAILS * segments + segment)
        cosine = _cosine(
            tl.load(totals + _DOT * segments + segment),
            tl.load(totals + _GRAD_SQ * segments + segment),
            tl.load(totals + _WEIGHT_SQ * segments + segment),
            tl.load(eps + segment),
        )
        missed += tl.where(cosine < tl.load(limit + segment), 0.0, 1.0)
    channel = failed == 0.0
    return channel, (missed == 0.0) & (channel == 0)


@triton.jit
def decide(
    stats, stride, totals, segments, offsets, weight_segments, limit, eps, decay, projected_decay,
    channel, layer, shift, HAS_SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`projection.decide` of one weight."""
    weight = tl.program_id(0).to(tl.int64)
    first = tl.load(weight_segments + weight) if HAS_SEGMENTS else weight
    last = tl.load(weight_segments + weight + 1) if HAS_SEGMENTS else weight + 1
    by_row, as_one = _view(totals, segments, first, last, limit, eps)
    tl.store(channel + weight, by_row.to(tl.uint8))
    tl.store(layer + weight, as_one.to(tl.uint8))
    full, reduced = tl.load(decay + weight), tl.load(projected_decay + weight)
    own_decay = tl.where(by_row | as_one, reduced, full)
    for segment in range(first, last):
        own_eps = tl.load(eps + segment)
        whole = _radial_part(
            tl.load(totals + _STEP_DOT * segments + segment),
            tl.load(totals + _WEIGHT_SQ * segments + segment),
            own_eps,
        )
        begin = tl.load(offsets + segment)
        end = tl.load(offsets + segment + 1)
        for start in range(begin, end, BLOCK):
            row = start + tl.arange(0, BLOCK)
            exists = row < end
            step_dot = tl.load(stats + _STEP_DOT * stride + row, exists, other=0.0)
            weight_sq = tl.load(stats + _WEIGHT_SQ * stride + row, exists, other=1.0)
            part = tl.where(by_row, _radial_part(step_dot, weight_sq, own_eps), 0.0)
            part = tl.where(as_one, whole, part)
            tl.store(shift + row, part - own_decay, exists)
