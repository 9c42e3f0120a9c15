"""The scalars of Adam's step: one of each for every weight, since each counts its own steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..bucket import AdamRule

__all__ = ["Scalars", "adam_scalars"]

Scalars: TypeAlias = Sequence[float] | Sequence[Tensor]


def adam_scalars(rule: AdamRule, state_steps: Sequence[Tensor]) -> tuple[Scalars, Scalars]:
    """`lr / (1 − β₁ᵗ)` and `√(1 − β₂ᵗ)` for the step count t of every weight.

    Tensors where the step counts must not be read (a captured graph, a compiled step), else
    Python floats, whose arithmetic is float64.
    """
    if rule.capturable or torch.compiler.is_compiling():
        powers1 = [rule.beta1**step for step in state_steps]
        powers2 = [rule.beta2**step for step in state_steps]
        step_sizes = [rule.lr / (1 - power) for power in powers1]
        return step_sizes, [(1 - power).sqrt() for power in powers2]
    counts = [step.item() for step in state_steps]
    # Almost always every weight has taken as many steps as the others.
    table = {
        count: (rule.lr / (1 - rule.beta1**count), (1 - rule.beta2**count) ** 0.5)
        for count in set(counts)
    }
    return [table[count][0] for count in counts], [table[count][1] for count in counts]
