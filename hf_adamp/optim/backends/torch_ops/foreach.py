"""All weights at once, in torch's multi-tensor operations: sync-free, one graph when compiled."""

# mypy: disable-error-code="call-overload,arg-type"
# The stubs of the multi-tensor operators know no unions of their overloads.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...memory import is_transformed
from ...rules import Rule, Scalar, is_adam, step_scalars
from ..base import Backend, Candidate, Members
from .blocks import Moments, TorchSection, state_refusal

__all__ = ["FOREACH"]

# On a CPU the temporaries of a chunk stay in cache; measured on weights of BERT's shapes.
_CPU_CHUNK_ELEMENTS = 1 << 19


class Foreach(Backend):
    """Serves every device; the default on a GPU."""

    name = "foreach"

    def is_default_for(self, device_type: str) -> bool:
        """It is nowhere the fastest on a CPU, but everywhere right."""
        del device_type
        return True

    def chunk_elements(self, device_type: str) -> int | None:
        """Elsewhere a cut would cost launches and gain nothing."""
        return _CPU_CHUNK_ELEMENTS if device_type == "cpu" else None

    def refusal(self, candidate: Candidate) -> str | None:
        """Why it cannot serve weights like this, or None where it can."""
        rule = candidate.rule
        if is_transformed(candidate.param):
            return "cannot be batched by torch.func, which has no rule for multi-tensor operations"
        if is_adam(rule) and not rule.capturable:
            for option in ("lr", "beta1", "beta2"):
                if isinstance(getattr(rule, option), Tensor):
                    return f"takes {option} as a tensor only with capturable=True"
        return state_refusal(candidate)

    def prepare(self, members: Members) -> ForeachSection:
        """Make what outlasts a step."""
        return ForeachSection(members)


class ForeachSection(TorchSection):
    """The arithmetic in `torch._foreach_*`."""

    def advance(self, rule: Rule, grads: list[Tensor], moments: Moments) -> None:
        """Update the moments of some blocks, in place."""
        if not is_adam(rule):
            for buffers in moments:
                torch._foreach_mul_(buffers, rule.momentum)
                torch._foreach_add_(buffers, grads, alpha=1 - rule.dampening)
            return
        exp_avgs, exp_avg_sqs = moments
        torch._foreach_lerp_(exp_avgs, grads, 1 - rule.beta1)
        torch._foreach_mul_(exp_avg_sqs, rule.beta2)
        if isinstance(rule.beta2, Tensor):  # addcmul takes no tensor for its value
            scaled = torch._foreach_mul(grads, 1 - rule.beta2)
            torch._foreach_addcmul_(exp_avg_sqs, scaled, grads)
        else:
            torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - rule.beta2)

    def displacements(
        self, rule: Rule, grads: list[Tensor], moments: Moments, state_steps: list[Tensor]
    ) -> list[Tensor]:
        """The step of each of some blocks, in memory of its own."""
        if not is_adam(rule):
            if not moments:
                return _times(grads, rule.lr * (1 - rule.dampening))
            (buffers,) = moments
            # Algorithm 1 projects the step, and the momentum keeps its radial part.
            if rule.nesterov:
                return _times(torch._foreach_add(grads, buffers, alpha=rule.momentum), rule.lr)
            return _times(buffers, rule.lr)
        exp_avgs, exp_avg_sqs = moments
        step_sizes, roots = (
            _in_dtype_of(grads[0], scalars) for scalars in step_scalars(rule, state_steps)
        )
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(denominators, roots)
        torch._foreach_add_(denominators, rule.eps)
        steps = torch._foreach_lerp(grads, exp_avgs, rule.beta1) if rule.nesterov else exp_avgs
        steps = torch._foreach_div(steps, denominators)
        torch._foreach_mul_(steps, step_sizes)
        return list(steps)

    def row_sums(self, grads: list[Tensor], weights: list[Tensor], steps: list[Tensor]) -> Tensor:
        """(5, R) sums over each row of these blocks."""
        return torch.stack(
            [
                _row_sums(torch._foreach_mul(grads, weights)),
                _row_squares(grads),
                _row_squares(weights),
                _row_sums(torch._foreach_mul(steps, weights)),
                _row_squares(steps),
            ]
        )

    def write(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        steps: list[Tensor],
        factors: list[Scalar],
    ) -> None:
        """`target ← target − (step − factor · w)`."""
        plain = [index for index, factor in enumerate(factors) if not _has_rows(factor)]
        for index, (step, weight, factor) in enumerate(zip(steps, weights, factors, strict=True)):
            if _has_rows(factor):
                steps[index] = step.addcmul_(weight, factor, value=-1)
        decays = [factors[index] for index in plain]
        if any(isinstance(decay, Tensor) or decay for decay in decays):
            decayed = torch._foreach_mul([weights[index] for index in plain], decays)
            torch._foreach_sub_([steps[index] for index in plain], decayed)
        torch._foreach_sub_(targets, steps)


FOREACH = Foreach()


def _has_rows(factor: Scalar) -> bool:
    return isinstance(factor, Tensor) and factor.ndim > 0


def _in_dtype_of(like: Tensor, scalars: Sequence[float | Tensor]) -> list[float | Tensor]:
    # A float64 scalar tensor would not change the result's dtype, but multi-tensor kernels refuse.
    return [s.to(like.dtype) if isinstance(s, Tensor) else s for s in scalars]


def _times(tensors: Sequence[Tensor], factor: Scalar) -> list[Tensor]:
    return list(torch._foreach_mul(tensors, factor))


def _inner_dims(tensor: Tensor) -> tuple[int, ...]:
    # Dimensions rather than a reshape, which would copy where strides are unusual.
    return tuple(range(1, tensor.ndim))


def _row_sums(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.sum(_inner_dims(tensor)) for tensor in tensors])


def _row_squares(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor, dim=_inner_dims(tensor)) for tensor in tensors]
    return torch.cat(norms).square()
