"""The scalars of Adam's step: one of each for every weight, since each counts its own steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..bucket import AdamRule

__all__ = ["Scalars", "adam_scalars"]

Scalars: TypeAlias = list[float | Tensor]


def adam_scalars(rule: AdamRule, state_steps: Sequence[Tensor]) -> tuple[Scalars, Scalars]:
    """`lr / (1 − β₁ᵗ)` and `√(1 − β₂ᵗ)` for the step count t of every weight.

    Tensors where the step counts must not be read (a captured graph, a compiled step), else
    Python floats, whose arithmetic is float64.
    """
    if rule.capturable or torch.compiler.is_compiling():
        step_sizes: Scalars = [rule.lr / _correction(rule.beta1, step) for step in state_steps]
        return step_sizes, [_correction(rule.beta2, step).sqrt() for step in state_steps]
    counts = [step.item() for step in state_steps]
    # Almost always every weight has taken as many steps as the others.
    table = {
        count: (rule.lr / (1 - rule.beta1**count), (1 - rule.beta2**count) ** 0.5)
        for count in set(counts)
    }
    return [table[count][0] for count in counts], [table[count][1] for count in counts]


def _correction(beta: float | Tensor, step: Tensor) -> Tensor:
    """`1 − βᵗ`, which float32 would round to 3e-5 relative at β=0.999, t=1, written out."""
    if isinstance(beta, Tensor):
        return 1 - beta**step
    return -torch.expm1(step * math.log(beta)) if beta > 0 else torch.ones_like(step)
