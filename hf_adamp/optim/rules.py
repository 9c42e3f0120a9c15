"""How the step before projection comes about: Adam's and SGD's, and the coefficients they need.

Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .scale_invariance import ScaleInvariant, threshold

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = [
    "AdamRule",
    "Coefficients",
    "Kind",
    "Rule",
    "SGDRule",
    "Scalar",
    "is_adam",
    "step_scalars",
]

Scalar: TypeAlias = float | Tensor


class Kind(IntEnum):
    """Which moments a rule keeps; the numbers are those of the C kernel."""

    ADAM = 0  # two moments and a step count
    MOMENTUM = 1  # one moment
    PLAIN = 2  # none


class Coefficients(NamedTuple):
    """A rule in the numbers that every kernel computes with.

    With `g` the gradient times `sign`, a step is made of

        m ← keep1 · m + add1 · g;   v ← keep2 · v + add2 · g²
        numerator = of_moment · m + of_grad · g
    """

    keep1: float
    add1: float
    keep2: float
    add2: float
    of_moment: float
    of_grad: float
    eps: float
    sign: float
    decay: float
    projected_decay: float
    delta: float


@dataclass(frozen=True)
class _Options:
    """What both rules have; see `AdamP`."""

    lr: Scalar
    eps: float
    weight_decay: float
    delta: float
    wd_ratio: float
    nesterov: bool
    maximize: bool
    scale_invariant: ScaleInvariant

    @property
    def threshold(self) -> float:
        """What cosines are held against, times the root of the elements."""
        return threshold(self.scale_invariant, self.delta)

    @property
    def decay(self) -> Scalar:
        """The share of a weight that weight decay takes in a step."""
        return self.lr * self.weight_decay

    def _shared_coefficients(self) -> tuple[float, float, float, float, float]:
        """The last five of `Coefficients`, which are the same for both rules."""
        decay = float(self.decay)
        sign = -1.0 if self.maximize else 1.0
        return self.eps, sign, decay, decay * self.wd_ratio, self.threshold


@dataclass(frozen=True)
class AdamRule(_Options):
    """Adam's step before projection, `lr · m̂ / (√v̂ + eps)` (Algorithm 2, lines 3 to 7)."""

    beta1: Scalar
    beta2: Scalar
    capturable: bool = False

    kind = Kind.ADAM

    @property
    def coefficients(self) -> Coefficients:
        """The rule in numbers; `lr` and both betas must be floats."""
        beta1, beta2 = float(self.beta1), float(self.beta2)
        ahead = (beta1, 1 - beta1) if self.nesterov else (1.0, 0.0)
        return Coefficients(
            beta1, 1 - beta1, beta2, 1 - beta2, *ahead, *self._shared_coefficients()
        )


@dataclass(frozen=True)
class SGDRule(_Options):
    """SGD's step before projection, `lr · buf` (Algorithm 1, lines 3 and 4)."""

    momentum: float
    dampening: float

    @property
    def kind(self) -> Kind:
        """Without momentum there is nothing to keep."""
        return Kind.MOMENTUM if self.momentum else Kind.PLAIN

    @property
    def decay(self) -> Scalar:
        """The share of a weight that weight decay takes in a step.

        Momentum multiplies the effect of a gradient by up to `1 / (1 − momentum)`; decoupled
        weight decay is scaled likewise, as NAVER's reference does, so that the two stay in
        proportion.
        """
        return self.lr * self.weight_decay / (1 - self.momentum)

    @property
    def coefficients(self) -> Coefficients:
        """The rule in numbers; `lr` must be a float."""
        add = 1 - self.dampening
        if not self.momentum:
            return Coefficients(0.0, 0.0, 0.0, 0.0, 0.0, add, *self._shared_coefficients())
        ahead = (self.momentum, 1.0) if self.nesterov else (1.0, 0.0)
        return Coefficients(self.momentum, add, 0.0, 0.0, *ahead, *self._shared_coefficients())


Rule: TypeAlias = AdamRule | SGDRule
Scalars: TypeAlias = list[float | Tensor]


def is_adam(rule: Rule) -> TypeIs[AdamRule]:
    """Whether this is Adam's rule; else it is SGD's.

    Asked of its kind, not of its class: of a module that is reloaded (autoreload in a notebook) the
    one class has two objects.
    """
    return rule.kind == Kind.ADAM


def step_scalars(rule: AdamRule, state_steps: Sequence[Tensor]) -> tuple[Scalars, Scalars]:
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


def _correction(beta: Scalar, step: Tensor) -> Tensor:
    """`1 − βᵗ`, which float32 would round to 3e-5 relative at β=0.999, t=1, written out.

    In float64, since a float64 weight is not to be stepped with float32's precision; a count is one
    number a weight, so it costs nothing.
    """
    step = step.double()
    if isinstance(beta, Tensor):
        return 1 - beta.double() ** step
    return -torch.expm1(step * math.log(beta)) if beta > 0 else torch.ones_like(step)
