"""SGDP: SGD with momentum whose updates lose their radial part where a weight is scale-invariant.

    p_t = β p_{t−1} + ∇f(w);   w ← w − lr · Π_w(p_t)   where |cos(w, ∇w)| < δ/√dim

Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .backends import Flags
from .optimizer import ProjectedOptimizer, step_once
from .plan import Collected
from .rules import SGDRule
from .scale_invariance import ScaleInvariant
from .storage import new_moment

__all__ = ["SGDP", "sgdp"]


class SGDP(ProjectedOptimizer):
    """Implements SGDP: SGD with momentum for networks with normalization layers.

    It tests and projects as `AdamP` does, but SGD's update. Weight decay is decoupled and, as in
    NAVER's reference, scaled by `1 / (1 − momentum)`.

    One thing differs from `adamp` 0.3.0 on purpose. Without Nesterov momentum, the update there
    *is* the momentum buffer, so projecting the update also removes the radial part of the buffer.
    The paper's Algorithm 1 and timm project a copy, and so does this class.

    Args:
        params: weights, `(name, weight)` pairs or param groups, as for torch.optim.
        lr: learning rate, at least 0.
        momentum: momentum, in [0, 1).
        dampening: dampening for momentum, in [0, 1]; applied from the first step on.
        weight_decay: decoupled weight decay, at least 0.
        nesterov: whether to use Nesterov momentum, `g + momentum · buf` instead of `buf`.
        eps: added to the norms, at least 0.
        delta: threshold of the test, at least 0 (the paper's δ).
        wd_ratio: factor on weight decay of projected weights, in [0, 1].
        maximize: whether to maximize the objective instead of minimizing it.
        foreach: see `AdamP`.
        capturable: accepted for symmetry with `AdamP`; SGDP never reads from the device.
        differentiable: whether autograd may differentiate through the step.
        fused: see `AdamP`.
        scale_invariant: see `AdamP`.

    Raises:
        TypeError: for an option of the wrong type, or complex weights.
        ValueError: for an option out of range, for `nesterov` without momentum, or if the declared
            heads do not divide the rows of a weight.
        RuntimeError: for options that exclude each other, or weights whose rows cannot be seen
            (the flattened shards of FSDP1).

    Example:
        >>> optimizer = SGDP(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-5)
        >>> loss(model(inputs), targets).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()

    Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithm 1; defaults are
    those of NAVER's `adamp` 0.3.0.
    """

    # adamp 0.3.0 and timm call it `momentum`, and so can load our checkpoints.
    state_aliases: ClassVar[dict[str, tuple[str, ...]]] = {"momentum": ("momentum_buffer",)}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        scale_invariant: ScaleInvariant = "auto",
        rounding: str = "nearest",
        state_dtype: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "scale_invariant": scale_invariant,
            "rounding": rounding,
            "state_dtype": state_dtype,
        }
        super().__init__(params, defaults)

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum",) if group["momentum"] else ()

    def _new_state(self, param: Tensor, group: Mapping[str, Any], name: str) -> Tensor:
        del name
        return new_moment(param, group["state_dtype"])

    def _rule(self, group: Mapping[str, Any]) -> SGDRule:
        return SGDRule(
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            delta=group["delta"],
            wd_ratio=group["wd_ratio"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            scale_invariant=group["scale_invariant"],
        )


def sgdp(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    foreach: bool | None = None,
    differentiable: bool = False,
    fused: bool | None = None,
    scale_invariant: ScaleInvariant = "auto",
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    eps: float,
    delta: float,
    wd_ratio: float,
    maximize: bool,
) -> None:
    """Functional form of `SGDP`: takes one step and changes the tensors in place.

    Args:
        params: weights of any shapes.
        grads: a gradient for each.
        momentum_buffers: a buffer for each, initially zeros; an empty list without momentum.
        foreach: see `SGDP`.
        differentiable: see `SGDP`.
        fused: see `SGDP`.
        scale_invariant: see `SGDP`.
        lr: see `SGDP`.
        momentum: see `SGDP`.
        dampening: see `SGDP`.
        weight_decay: see `SGDP`.
        nesterov: see `SGDP`.
        eps: see `SGDP`.
        delta: see `SGDP`.
        wd_ratio: see `SGDP`.
        maximize: see `SGDP`.
    """
    rule = SGDRule(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        eps=eps,
        weight_decay=weight_decay,
        delta=delta,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
        maximize=maximize,
        scale_invariant=scale_invariant,
    )
    flags = Flags(foreach, fused, differentiable)
    moments = (momentum_buffers,) if momentum else ()
    step_once(Collected(params, params, list(grads), moments, [], rule, flags))
