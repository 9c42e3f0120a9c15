"""One weight after the other, in plain operations: the path to read, and the differentiable one."""

from __future__ import annotations

import torch
from torch import Tensor

from ...rules import Rule, Scalar, is_adam, step_scalars
from ..base import Backend, Candidate, Members
from .blocks import Moments, TorchSection, state_refusal

__all__ = ["SINGLE_TENSOR"]


class SingleTensor(Backend):
    """Serves every device and every option."""

    name = "single_tensor"

    def is_default_for(self, device_type: str) -> bool:
        """The last resort, for a learning rate that is a tensor say."""
        del device_type
        return True

    def refusal(self, candidate: Candidate) -> str | None:
        """Why it cannot serve weights like this, or None where it can."""
        return state_refusal(candidate)

    def prepare(self, members: Members) -> SingleTensorSection:
        """Make what outlasts a step."""
        return SingleTensorSection(members)


class SingleTensorSection(TorchSection):
    """The arithmetic as the paper writes it."""

    def advance(self, rule: Rule, grads: list[Tensor], moments: Moments) -> None:
        """Update the moments of some blocks, in place."""
        if not is_adam(rule):
            for buffers in moments:
                for buffer, grad in zip(buffers, grads, strict=True):
                    buffer.mul_(rule.momentum).add_((1 - rule.dampening) * grad)
            return
        for exp_avg, exp_avg_sq, grad in zip(*moments, grads, strict=True):
            exp_avg.lerp_(grad, 1 - rule.beta1)
            exp_avg_sq.mul_(rule.beta2).add_((1 - rule.beta2) * grad * grad)

    def displacements(
        self, rule: Rule, grads: list[Tensor], moments: Moments, state_steps: list[Tensor]
    ) -> list[Tensor]:
        """The step of each of some blocks, in memory of its own."""
        # What autograd keeps for its way back must not be a moment, which the next step changes.
        kept = [list(map(_for_autograd, tensors)) for tensors in moments]
        if not is_adam(rule):
            averages = kept[0] if kept else [(1 - rule.dampening) * grad for grad in grads]
            return [
                # The momentum keeps its radial part: Algorithm 1 projects the step.
                rule.lr * (grad + rule.momentum * average if rule.nesterov else average)
                for grad, average in zip(grads, averages, strict=True)
            ]
        steps = []
        for grad, exp_avg, exp_avg_sq, step_size, root in zip(
            grads, *kept, *step_scalars(rule, state_steps), strict=True
        ):
            numerator = grad.lerp(exp_avg, rule.beta1) if rule.nesterov else exp_avg
            steps.append(step_size * (numerator / (exp_avg_sq.sqrt() / root + rule.eps)))
        return steps

    def row_sums(self, grads: list[Tensor], weights: list[Tensor], steps: list[Tensor]) -> Tensor:
        """(5, R) sums over each row of these blocks."""
        return torch.cat(
            [
                torch.stack([(a * b).sum(1) for a, b in ((g, w), (g, g), (w, w), (s, w), (s, s))])
                for g, w, s in (
                    (grad.flatten(1), weight.flatten(1), step.flatten(1))
                    for grad, weight, step in zip(grads, weights, steps, strict=True)
                )
            ],
            dim=1,
        )

    def write(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        steps: list[Tensor],
        factors: list[Scalar],
    ) -> None:
        """`target ← target − (step − factor · w)`."""
        for target, weight, step, factor in zip(targets, weights, steps, factors, strict=True):
            target.sub_(step - factor * weight)


SINGLE_TENSOR = SingleTensor()


def _for_autograd(tensor: Tensor) -> Tensor:
    return tensor.clone() if torch.is_grad_enabled() else tensor
