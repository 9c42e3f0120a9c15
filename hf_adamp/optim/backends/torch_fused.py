"""torch's own fused operator, with a rank-1 repair of the rows that project: the CPU's plain path.

The fused operator writes `w − step` in one pass but tells nothing of the step. So statistics are
taken before it, and a weight that projects is copied, a block at a time, to learn its step
afterwards: `step = w_old − w_new`, and then `w_new += shift · w_old` repairs it. Only weights that
project pay for that, and blocks are small enough to stay in cache.
"""

# mypy: disable-error-code="call-overload,arg-type"
# The stubs of the multi-tensor operators know no unions of their overloads.

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, working_dtype
from ..projection import Decision, Statistic, View, radial_part
from .row_major import are_row_major

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal"]

name = "torch_fused"
# Both sizes measured on weights of BERT's and ResNet-50's shapes: large enough that a decision
# costs little beside the pass, small enough that a chunk is still in cache for its second pass.
chunk_elements = 1 << 22
_BLOCK_ELEMENTS = 1 << 17


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
    begin = bucket.rows.start
    for param, grad in zip(bucket.params[: bucket.matrices], bucket.grads, strict=False):
        weight, gradient = _as_rows(param), _as_rows(grad)
        for block in _blocks(weight):
            rows = slice(begin + block.start, begin + block.stop)
            w, g = weight[block], gradient[block]
            torch.sum(g * w, 1, out=stats[Statistic.DOT, rows])
            torch.linalg.vector_norm(g, dim=1, out=stats[Statistic.GRAD_SQ, rows])
            torch.linalg.vector_norm(w, dim=1, out=stats[Statistic.WEIGHT_SQ, rows])
        begin += len(weight)
    stats[Statistic.GRAD_SQ : Statistic.STEP_DOT, bucket.rows].square_()
    return recording


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, recording: bool) -> None:
    """Run the fused operator, on its own for most weights, with a repair for those that project."""
    views = decision.views.codes[bucket.weights].tolist() if decision else []
    plain = [i for i, view in enumerate(views) if view == View.NONE and not recording]
    plain += range(bucket.matrices, len(bucket.params))
    if plain:
        _advance(bucket.take(plain), decay=True)

    begin = bucket.rows.start
    for index, view in enumerate(views):
        rows = slice(begin, begin + bucket.params[index].shape[0])
        begin = rows.stop
        if view != View.NONE or recording:
            heads = bucket.extents[index].segments
            _advance_and_repair(
                bucket.take([index]), view, stats[:, rows], heads, recording=recording
            )
    # Which torch's fused operators leave out, so that autograd would miss the change.
    torch.autograd.graph.increment_version([*bucket.params, *chain(*bucket.moments)])


def _advance(bucket: Bucket, *, decay: bool) -> None:
    """Moments and weights of the bucket one step on, without projection."""
    rule, params, grads = bucket.rule, bucket.params, bucket.grads
    if isinstance(rule, AdamRule):
        torch._fused_adamw_(
            params,
            grads,
            *bucket.moments,
            [],
            bucket.state_steps,
            lr=rule.lr,
            beta1=rule.beta1,
            beta2=rule.beta2,
            weight_decay=rule.weight_decay if decay else 0.0,
            eps=rule.eps,
            amsgrad=False,
            maximize=rule.maximize,
        )
        return
    if decay and rule.weight_decay:
        torch._foreach_mul_(params, 1 - rule.decay)
    torch._fused_sgd_(
        params,
        grads,
        *(bucket.moments or ([],)),
        weight_decay=0.0,
        momentum=rule.momentum,
        lr=rule.lr,
        dampening=rule.dampening,
        nesterov=rule.nesterov,
        maximize=rule.maximize,
        # A first step would copy the gradient undampened; our buffers start at zero instead.
        is_first_step=False,
    )


def _advance_and_repair(
    bucket: Bucket, view: int, stats: Tensor, heads: int, *, recording: bool
) -> None:
    """One weight, block by block; in the layer view at once, since the whole sizes its repair."""
    rule = bucket.rule
    whole = [_as_rows(tensor) for tensor in (bucket.params[0], bucket.grads[0], *_moments(bucket))]
    decay = rule.decay * (1.0 if view == View.NONE else rule.wd_ratio)
    for block in [slice(0, len(whole[0]))] if view == View.LAYER else _blocks(whole[0]):
        weight, grad, *moments = (tensor[block] for tensor in whole)
        old = weight.clone()
        piece = Bucket(
            [weight], [grad], tuple([m] for m in moments), bucket.state_steps, bucket.rule
        )
        _advance(piece, decay=False)
        step = old - weight
        if recording:
            stats[Statistic.STEP_SQ, block] = step.square().sum(1)
        torch.sum(step.mul_(old), 1, out=stats[Statistic.STEP_DOT, block])
        sizing = stats[:, block]
        if view == View.LAYER:
            sizing = sizing.unflatten(1, (heads, -1)).sum(2)
        part = radial_part(sizing, rule.eps) if view != View.NONE else torch.zeros_like(sizing[0])
        shift = (part - decay).unsqueeze(1)
        weight.view(len(shift), -1).addcmul_(old.view(len(shift), -1), shift)


def _moments(bucket: Bucket) -> list[Tensor]:
    return [moment[0] for moment in bucket.moments]


def _as_rows(tensor: Tensor) -> Tensor:
    """(rows, columns) view of a row-major tensor, columns in memory order."""
    rows = tensor.shape[0]
    columns = tensor.numel() // rows
    return tensor.as_strided((rows, columns), (columns, 1))


def _blocks(matrix: Tensor) -> Iterator[slice]:
    rows, columns = matrix.shape
    step = max(1, _BLOCK_ELEMENTS // columns)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))
