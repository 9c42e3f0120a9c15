"""What a backend works on: weights that are updated alike, and the rule they are updated by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .distributed import Placement
from .invariance import ScaleInvariant
from .projection import Extent

__all__ = ["AdamRule", "Bucket", "Rule", "SGDRule", "working_dtype"]

Scalar: TypeAlias = float | Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of moments, statistics and arithmetic: float32, for float64 weights float64.

    In float16 the square of a gradient below 2.4e-4 is 0 and eps=1e-8 is 0 too, so a step divides
    by zero; in bfloat16 a second moment with beta2=0.999 stops moving. Hence never below float32.
    """
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class AdamRule:
    """Adam's step before projection, `lr · m̂ / (√v̂ + eps)` (Algorithm 2, lines 3 to 7).

    `delta` is what cosines are held against, `invariance.threshold` of the option.
    """

    lr: Scalar
    beta1: Scalar
    beta2: Scalar
    eps: float
    weight_decay: float
    delta: float
    wd_ratio: float
    nesterov: bool
    maximize: bool
    capturable: bool
    scale_invariant: ScaleInvariant = "auto"

    @property
    def decay(self) -> Scalar:
        """The share of a weight that weight decay takes in a step."""
        return self.lr * self.weight_decay


@dataclass(frozen=True)
class SGDRule:
    """SGD's step before projection, `lr · buf` (Algorithm 1, lines 3 and 4).

    `delta` is as in `AdamRule`.
    """

    lr: Scalar
    momentum: float
    dampening: float
    eps: float
    weight_decay: float
    delta: float
    wd_ratio: float
    nesterov: bool
    maximize: bool
    scale_invariant: ScaleInvariant = "auto"

    @property
    def decay(self) -> Scalar:
        """The share of a weight that weight decay takes in a step.

        Momentum multiplies the effect of a gradient by up to `1 / (1 − momentum)`; decoupled
        weight decay is scaled likewise, as NAVER's reference does, so that the two stay in
        proportion.
        """
        return self.lr * self.weight_decay / (1 - self.momentum)


Rule: TypeAlias = AdamRule | SGDRule


@dataclass(frozen=True)
class Bucket:
    """Weights of one param group, device and dtype, with all that their update needs.

    Attributes:
        params: the weights; first those with rows (`projection.has_rows`), then the others.
        grads: a gradient for each.
        moments: `(exp_avgs, exp_avg_sqs)` for `AdamRule`; `(momentum_buffers,)` or, without
            momentum, `()` for `SGDRule`. In `working_dtype`.
        state_steps: the step count of each weight, already advanced; empty for `SGDRule`.
        rule: how the step before projection comes about.
        extents: of the params with rows; known once the bucket is sorted.
        key: equal for buckets that are laid out alike, likewise.
        place: equal as long as the memory of params and moments is that of the step before; None
            where that is not known.
        weights: the bucket's weights with rows among those of its section, in whose `Layout` and
            `Decision` they are numbered; known once it is part of one.
        rows: the bucket's rows in the section's statistics buffer, likewise.
        placements: where the rows of sharded weights live, in parallel to params or empty; params,
            grads and moments are then this process's parts.
        memo: what the backend keeps from step to step for a bucket of these shapes.
    """

    params: list[Tensor]
    grads: list[Tensor]
    moments: tuple[list[Tensor], ...]
    state_steps: list[Tensor]
    rule: Rule
    extents: tuple[Extent, ...] = ()
    key: Hashable = None
    place: Hashable = None
    weights: slice = field(default_factory=lambda: slice(0, 0))
    rows: slice = field(default_factory=lambda: slice(0, 0))
    memo: dict[str, Any] = field(default_factory=dict)
    placements: list[Placement | None] = field(default_factory=list)

    @property
    def matrices(self) -> int:
        """How many of the params have rows."""
        return len(self.extents)

    def take(self, indices: Sequence[int]) -> Bucket:
        """The bucket of the weights at these indices."""
        return self._map(lambda tensors: [tensors[index] for index in indices])

    def part(self, begin: int, end: int) -> Bucket:
        """The bucket of the weights from begin to end, weights with rows still first."""
        return replace(
            self._map(lambda tensors: tensors[begin:end]),
            extents=self.extents[begin:end],
            key=(self.key, begin, end),
            place=None if self.place is None else (self.place, begin, end),
        )

    def _map(self, pick: Callable[[list[Any]], list[Any]]) -> Bucket:
        return replace(
            self,
            params=pick(self.params),
            grads=pick(self.grads),
            moments=tuple(pick(moment) for moment in self.moments),
            state_steps=pick(self.state_steps) if self.state_steps else [],
            placements=pick(self.placements) if self.placements else [],
        )
