"""torch's own fused operator, with a projection beside it: the CPU's path without a compiler.

The fused operator writes `w − step` in one pass but tells nothing of the step. So statistics are
taken before it. A weight that does not project is left to it; for one that does it steps a block
of zeros, which thereby becomes `−step`, and `w += shift · w − step` follows while that block is in
cache. The projection is sized here, then: too late for weights that are sharded.
"""

# mypy: disable-error-code="call-overload,arg-type"
# The stubs of the multi-tensor operators know no unions of their overloads.

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate as running_sum
from itertools import chain

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, Rule, working_dtype
from ..projection import Decision, Statistic, View, radial_part
from .row_blocks import Block, blocks, row_dots, row_norms
from .row_major import are_row_major

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal"]

name = "torch_fused"
chunk_elements = None


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    rule = bucket.rule
    param = bucket.params[0]
    if param.device.type != "cpu":
        return f"is for the CPU, not {param.device.type}"
    if working_dtype(param.dtype) != param.dtype or bucket.grads[0].dtype != param.dtype:
        return f"has no kernel for {param.dtype} weights with {bucket.grads[0].dtype} gradients"
    if any(moment[0].dtype != working_dtype(param.dtype) for moment in bucket.moments):
        return f"needs state in {working_dtype(param.dtype)}, not {bucket.moments[0][0].dtype}"
    if bucket.placements:
        return "learns the step too late for weights that are sharded"
    if isinstance(rule, AdamRule):
        if rule.nesterov:
            return "has no Nesterov momentum for AdamP"
        if isinstance(rule.beta1, Tensor) or isinstance(rule.beta2, Tensor):
            return "takes betas as floats only"
    elif isinstance(rule.lr, Tensor):
        return "takes lr as a float only"
    elif rule.dampening and not bucket.moments:
        return "has no dampening without momentum"
    if not are_row_major(param, bucket.grads[0], *(moment[0] for moment in bucket.moments)):
        return "needs weight, gradient and state in the same dense, row-major layout"
    return None


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> bool:
    """Write the statistics that need gradient and weight only; the moments follow in `apply`."""
    everything = bucket.memo.get("blocks")
    if everything is None:
        weights = range(bucket.matrices)
        everything = bucket.memo["blocks"] = list(
            blocks(weights, bucket.params, _starts(bucket), whole=False)
        )
    own = stats[:, bucket.rows]
    scratch = stats.new_empty(max((block.elements for block in everything), default=0))
    for block in everything:
        weight, grad = block.joined(bucket.params), block.joined(bucket.grads)
        own[Statistic.WEIGHT_SQ, block.rows] = row_norms(weight)
        own[Statistic.GRAD_SQ, block.rows] = row_norms(grad)
        own[Statistic.DOT, block.rows] = row_dots(grad, weight, scratch)
    own[Statistic.GRAD_SQ : Statistic.STEP_DOT].square_()
    return recording


def _starts(bucket: Bucket) -> list[int]:
    return list(running_sum((extent.rows for extent in bucket.extents), initial=0))


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, recording: bool) -> None:
    """Run the fused operator, on its own for most weights, with a projection for the others."""
    views = decision.views.codes[bucket.weights].tolist() if decision else []
    plain = [i for i, view in enumerate(views) if view == View.NONE and not recording]
    plain += range(bucket.matrices, len(bucket.params))
    if plain:
        _step_plain(bucket if len(plain) == len(bucket.params) else bucket.take(plain))
    if len(plain) < len(bucket.params):
        _project(bucket, views, stats[:, bucket.rows], recording=recording)
    # Which torch's fused operators leave out, so that autograd would miss the change.
    torch.autograd.graph.increment_version([*bucket.params, *chain(*bucket.moments)])


def _step_plain(bucket: Bucket) -> None:
    rule, tensors = bucket.rule, (bucket.params, bucket.grads, *bucket.moments)
    if isinstance(rule, AdamRule):
        _advance(rule, *tensors, counts=bucket.state_steps, decay=rule.weight_decay)
        return
    if rule.weight_decay:
        torch._foreach_mul_(bucket.params, 1 - rule.decay)
    _advance(rule, *tensors, counts=[])


def _project(bucket: Bucket, views: list[int], stats: Tensor, *, recording: bool) -> None:
    """The weights that project or, if recording, all; block by block, alike in view."""
    kinds: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (view, extent) in enumerate(zip(views, bucket.extents, strict=True)):
        if view != View.NONE or recording:
            kinds[view, extent.segments].append(index)
    starts = _starts(bucket)
    work = [
        (view, heads, block)
        for (view, heads), alike in kinds.items()
        # The whole weight sizes the layer view's projection.
        for block in blocks(alike, bucket.params, starts, whole=view == View.LAYER)
    ]
    # Memory allocated for each block anew may come from the system each time, page by page.
    largest = max(block.elements for _, _, block in work)
    steps, scratch = stats.new_empty(largest), stats.new_empty(largest)
    for view, heads, block in work:
        weight = block.joined(bucket.params)
        negated = steps[: block.elements].view_as(weight)
        pieces = block.split(negated, bucket.params)
        _advance_zeros(bucket, block, negated, pieces)
        stats[Statistic.STEP_DOT, block.rows] = row_dots(negated, weight, scratch).neg_()
        if recording:
            stats[Statistic.STEP_SQ, block.rows] = row_norms(negated).square_()
        vectors = len(block.weights) * heads if view == View.LAYER else len(weight)
        shift = _shift(bucket.rule, view, stats[:, block.rows], vectors)
        negated.view(vectors, -1).addcmul_(weight.view(vectors, -1), shift)
        torch._foreach_add_(block.pieces(bucket.params), pieces)


def _advance_zeros(bucket: Bucket, block: Block, out: Tensor, pieces: list[Tensor]) -> None:
    """Advance a block's moments and write `-step`, as what becomes of weights that are zero."""
    out.zero_()
    _advance(
        bucket.rule,
        pieces,
        *map(block.pieces, (bucket.grads, *bucket.moments)),
        counts=[bucket.state_steps[i] for i in block.weights] if bucket.state_steps else [],
    )


def _shift(rule: Rule, view: int, stats: Tensor, vectors: int) -> Tensor:
    """(vectors, 1) the multiple of each that a step adds; see `projection.shift_rows`."""
    if view == View.NONE:
        return stats.new_full((vectors, 1), -rule.decay)
    if view == View.LAYER:
        stats = stats.unflatten(1, (vectors, -1)).sum(2)
    return (radial_part(stats, rule.eps) - rule.decay * rule.wd_ratio).unsqueeze(1)


def _advance(
    rule: Rule,
    params: list[Tensor],
    grads: list[Tensor],
    *moments: list[Tensor],
    counts: list[Tensor],
    decay: float = 0.0,
) -> None:
    """Moments and weights one step on, without projection; `counts` are Adam's `state_steps`."""
    if isinstance(rule, AdamRule):
        torch._fused_adamw_(
            params,
            grads,
            *moments,
            [],
            counts,
            lr=rule.lr,
            beta1=rule.beta1,
            beta2=rule.beta2,
            weight_decay=decay,
            eps=rule.eps,
            amsgrad=False,
            maximize=rule.maximize,
        )
        return
    torch._fused_sgd_(
        params,
        grads,
        *(moments or ([],)),
        weight_decay=0.0,
        momentum=rule.momentum,
        lr=rule.lr,
        dampening=rule.dampening,
        nesterov=rule.nesterov,
        maximize=rule.maximize,
        # A first step would copy the gradient undampened; our buffers start at zero instead.
        is_first_step=False,
    )
