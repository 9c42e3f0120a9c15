"""One weight after the other, in plain operations: the path to read, and the differentiable one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bucket import AdamRule, Bucket, SGDRule, working_dtype
from ..projection import Decision, Statistic
from .scalars import adam_scalars

__all__ = ["accumulate", "apply", "chunk_elements", "name", "refusal"]

name = "single_tensor"
chunk_elements = None


def refusal(bucket: Bucket) -> str | None:
    """Why this backend cannot serve the bucket, or None where it can."""
    dtype = working_dtype(bucket.params[0].dtype)
    if any(moment[0].dtype != dtype for moment in bucket.moments):
        return f"needs state in {dtype}, not {bucket.moments[0][0].dtype}"
    return None


def accumulate(bucket: Bucket, stats: Tensor, *, recording: bool) -> list[Tensor]:
    """Advance the moments, write the rows' statistics, return the step of every weight."""
    del recording  # the fifth statistic is as cheap as the others here
    steps = _adam_steps(bucket) if isinstance(bucket.rule, AdamRule) else _sgd_steps(bucket)
    begin = bucket.rows.start
    for param, grad, step in zip(
        bucket.params[: bucket.matrices], bucket.grads, steps, strict=False
    ):
        rows = slice(begin, begin + param.shape[0])
        begin = rows.stop
        weight = _for_autograd(param).to(stats.dtype).flatten(1)
        grad, step = (tensor.to(stats.dtype).flatten(1) for tensor in (grad, step))
        stats[Statistic.DOT, rows] = (grad * weight).sum(1)
        stats[Statistic.GRAD_SQ, rows] = grad.square().sum(1)
        stats[Statistic.WEIGHT_SQ, rows] = weight.square().sum(1)
        stats[Statistic.STEP_DOT, rows] = (step * weight).sum(1)
        stats[Statistic.STEP_SQ, rows] = step.square().sum(1)
    return steps


def apply(bucket: Bucket, stats: Tensor, decision: Decision | None, steps: list[Tensor]) -> None:
    """`w ← w + (shift · w − step)`, with a shift for each row or, without rows, weight decay."""
    del stats
    begin = bucket.rows.start
    for index, (param, step) in enumerate(zip(bucket.params, steps, strict=True)):
        factor: Tensor | float
        if decision is not None and index < bucket.matrices:
            rows = slice(begin, begin + param.shape[0])
            begin = rows.stop
            factor = decision.shift[rows].reshape(-1, *[1] * (param.ndim - 1))
        else:
            factor = -bucket.rule.decay
        weight = _for_autograd(param).to(step.dtype)
        param.sub_(step - factor * weight)


def _for_autograd(tensor: Tensor) -> Tensor:
    # What autograd keeps for its way back must not be the tensor that a step changes.
    return tensor.clone() if torch.is_grad_enabled() else tensor


def _adam_steps(bucket: Bucket) -> list[Tensor]:
    rule = bucket.rule
    assert isinstance(rule, AdamRule)
    steps = []
    for param, grad, exp_avg, exp_avg_sq, step_size, root_correction in zip(
        bucket.params,
        bucket.grads,
        *bucket.moments,
        *adam_scalars(rule, bucket.state_steps),
        strict=True,
    ):
        grad = _signed(grad, param, rule)
        exp_avg.lerp_(grad, 1 - rule.beta1)
        exp_avg_sq.mul_(rule.beta2).add_((1 - rule.beta2) * grad * grad)
        average = _for_autograd(exp_avg)
        numerator = grad.lerp(average, rule.beta1) if rule.nesterov else average
        denominator = _for_autograd(exp_avg_sq).sqrt() / root_correction + rule.eps
        steps.append(step_size * (numerator / denominator))
    return steps


def _sgd_steps(bucket: Bucket) -> list[Tensor]:
    rule = bucket.rule
    assert isinstance(rule, SGDRule)
    steps = []
    for index, (param, grad) in enumerate(zip(bucket.params, bucket.grads, strict=True)):
        grad = _signed(grad, param, rule)
        average = (1 - rule.dampening) * grad
        if bucket.moments:
            buffer = bucket.moments[0][index]
            average = _for_autograd(buffer.mul_(rule.momentum).add_(average))
        # The buffer keeps its radial part: Algorithm 1 projects the step, not the momentum.
        steps.append(rule.lr * (grad + rule.momentum * average if rule.nesterov else average))
    return steps


def _signed(grad: Tensor, param: Tensor, rule: AdamRule | SGDRule) -> Tensor:
    grad = grad.to(working_dtype(param.dtype))
    return -grad if rule.maximize else grad
