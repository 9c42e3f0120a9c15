"""All weights at once, in torch's multi-tensor operations: sync-free, one graph when compiled."""

# mypy: disable-error-code="call-overload,arg-type"
# The stubs of the multi-tensor operators know no unions of their overloads.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, Scalar, SGDRule, working_dtype
from ..projection import Decision, Statistic
from .scalars import Scalars, adam_scalars

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal"]

name = "foreach"
# On a CPU the temporaries of a chunk stay in cache; measured on weights of BERT's shapes.
chunk_elements = 1 << 19


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    dtype = working_dtype(bucket.params[0].dtype)
    if any(moment[0].dtype != dtype for moment in bucket.moments):
        return f"needs state in {dtype}, not {bucket.moments[0][0].dtype}"
    if isinstance(bucket.rule, AdamRule) and not bucket.rule.capturable:
        for option in ("lr", "beta1", "beta2"):
            if isinstance(getattr(bucket.rule, option), Tensor):
                return f"takes {option} as a tensor only with capturable=True"
    return None


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> list[Tensor]:
    """Advance the moments, write the rows' statistics, return the step of every weight."""
    grads = _at(working_dtype(bucket.params[0].dtype), bucket.grads)
    if bucket.rule.maximize:
        grads = list(torch._foreach_neg(grads))
    steps = (
        _adam_steps(bucket, grads)
        if isinstance(bucket.rule, AdamRule)
        else _sgd_steps(bucket, grads)
    )
    if bucket.matrices:
        _write_statistics(bucket, grads, steps, stats[:, bucket.rows], recording=recording)
    return steps


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, steps: list[Tensor]) -> None:
    """`w ← w + (shift · w − step)`, with a shift for each row or, without rows, weight decay."""
    del stats
    if decision is not None:
        for rows, param, step in zip(_rows_of(bucket), bucket.params, steps, strict=False):
            shift = decision.shift[rows].view(-1, *[1] * (param.ndim - 1))
            step.addcmul_(param, shift, value=-1)
    if bucket.rule.weight_decay and (vectors := steps[bucket.matrices :]):
        params = _at(vectors[0].dtype, bucket.params[bucket.matrices :])
        decayed = torch._foreach_mul(params, bucket.rule.decay)
        torch._foreach_add_(vectors, decayed)
    torch._foreach_sub_(bucket.params, steps)


def _at(dtype: torch.dtype, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]


def _rows_of(bucket: Bucket) -> Iterator[slice]:
    begin = bucket.rows.start
    for param in bucket.params[: bucket.matrices]:
        yield slice(begin, begin + param.shape[0])
        begin += param.shape[0]


def _adam_steps(bucket: Bucket, grads: list[Tensor]) -> list[Tensor]:
    rule = bucket.rule
    assert isinstance(rule, AdamRule)
    exp_avgs, exp_avg_sqs = bucket.moments
    step_sizes, root_corrections = adam_scalars(rule, bucket.state_steps)

    torch._foreach_lerp_(exp_avgs, grads, 1 - rule.beta1)
    torch._foreach_mul_(exp_avg_sqs, rule.beta2)
    if isinstance(rule.beta2, Tensor):  # addcmul takes no tensor for its value
        torch._foreach_addcmul_(exp_avg_sqs, _times(grads, 1 - rule.beta2), grads)
    else:
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - rule.beta2)

    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, root_corrections)
    torch._foreach_add_(denominators, rule.eps)
    steps = torch._foreach_lerp(grads, exp_avgs, rule.beta1) if rule.nesterov else exp_avgs
    steps = torch._foreach_div(steps, denominators)
    torch._foreach_mul_(steps, step_sizes)
    return list(steps)


def _sgd_steps(bucket: Bucket, grads: list[Tensor]) -> list[Tensor]:
    rule = bucket.rule
    assert isinstance(rule, SGDRule)
    if not bucket.moments:
        return _times(grads, rule.lr * (1 - rule.dampening))
    (buffers,) = bucket.moments
    torch._foreach_mul_(buffers, rule.momentum)
    torch._foreach_add_(buffers, grads, alpha=1 - rule.dampening)
    # A new list either way: Algorithm 1 projects the step, and the momentum keeps its radial part.
    if rule.nesterov:
        return _times(list(torch._foreach_add(grads, buffers, alpha=rule.momentum)), rule.lr)
    return _times(buffers, rule.lr)


def _times(tensors: list[Tensor], factor: Scalar | Scalars) -> list[Tensor]:
    return list(torch._foreach_mul(tensors, factor))


def _write_statistics(
    bucket: Bucket, grads: list[Tensor], steps: list[Tensor], out: Tensor, *, recording: bool
) -> None:
    weights = _at(out.dtype, bucket.params[: bucket.matrices])
    grads, steps = grads[: bucket.matrices], steps[: bucket.matrices]
    out[Statistic.DOT] = _row_sums(torch._foreach_mul(grads, weights))
    out[Statistic.STEP_DOT] = _row_sums(torch._foreach_mul(steps, weights))
    out[Statistic.GRAD_SQ] = _row_squares(grads)
    out[Statistic.WEIGHT_SQ] = _row_squares(weights)
    if recording:
        out[Statistic.STEP_SQ] = _row_squares(steps)


def _inner_dims(tensor: Tensor) -> tuple[int, ...]:
    # Dimensions rather than a reshape, which would copy where strides are unusual.
    return tuple(range(1, tensor.ndim))


def _row_sums(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.sum(_inner_dims(tensor)) for tensor in tensors])


def _row_squares(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor, dim=_inner_dims(tensor)) for tensor in tensors]
    return torch.cat(norms).square()
