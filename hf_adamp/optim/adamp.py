"""AdamP: Adam whose updates lose their radial part where a weight is scale-invariant.

    u_t = m̂_t / (√v̂_t + ε);   w ← w − lr · Π_w(u_t)   where |cos(w, ∇w)| < δ/√dim

Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .backends import Flags
from .optimizer import ProjectedOptimizer, step_once
from .plan import Collected
from .rules import AdamRule
from .scale_invariance import ScaleInvariant
from .storage import new_moment

__all__ = ["AdamP", "adamp"]


class AdamP(ProjectedOptimizer):
    """Implements AdamP: AdamW for networks with normalization layers.

    A weight that feeds a normalization layer is scale-invariant: its norm does not change the
    output, and its gradient is orthogonal to it. So the steps of Adam increase its norm and shrink
    its *effective* step `‖Δw‖/‖w‖`. AdamP tests each weight with two or more dimensions by
    `|cos(w, ∇w)| < δ/√dim`, first each row on its own (channel view), then the whole weight (layer
    view). If the test holds, AdamP removes the component of the update along the weight and
    multiplies weight decay by `wd_ratio`. All other weights get AdamW's update; with `delta=0` all
    weights do.

    Weights may have any strides and any real dtype. Moments, statistics and arithmetic are
    float32 for float16, bfloat16 and float32 weights, and float64 for float64 weights.

    Args:
        params: weights, `(name, weight)` pairs or param groups, as for torch.optim.
        lr: learning rate, at least 0. It may be a tensor with `capturable`, or if neither
            `foreach` nor `fused` is set.
        betas: decay of the two running averages, each in [0, 1).
        eps: added to the denominator and to the norms, at least 0.
        weight_decay: decoupled weight decay as in AdamW, at least 0.
        delta: threshold of the test, at least 0 (the paper's δ).
        wd_ratio: factor on weight decay of projected weights, in [0, 1] (the paper's λ ratio).
        nesterov: whether to use Nesterov momentum, `β₁m + (1−β₁)g` instead of `m`.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach: True uses multi-tensor operations, False steps one weight after the other, None
            chooses the fastest path for each weight.
        capturable: whether the step may be captured in a CUDA graph; keeps step counts on the
            device.
        differentiable: whether autograd may differentiate through the step.
        fused: True requires a fused kernel. None uses one if it serves all weights of a group,
            dtype and device.
        scale_invariant: which weights are scale-invariant, and at which granularity. "auto" uses
            the paper's test. The other values declare it: "row" every row, "tensor" the whole
            weight, ("head", number of heads) or ("head_dim", rows of a head) every group of so
            many consecutive rows. Declared weights are projected in every step without a test;
            `delta` is not used and weight decay is always multiplied by `wd_ratio`. False never
            projects. Weights with fewer than two dimensions are never projected. This option is
            ours, beyond the paper; docs/declared-invariance.md has all its values.
        rounding: how bfloat16 and float16 weights add an update that is small beside them.
            "nearest" rounds, so the update is often lost. "stochastic" (bfloat16 only) rounds up or
            down at random, right on average. "kahan" keeps the rounding error in a second tensor of
            the weight's dtype. See docs/low-precision.md.
        state_dtype: how moments are stored. None: float32 (float64 for float64 weights).
            "bfloat16": half of that. "8bit": a quarter, by torchao's block-wise quantization, for
            weights of at least 4096 elements in whole blocks of 256; the others as with None.

    Raises:
        TypeError: for an option of the wrong type, or complex weights.
        ValueError: for an option out of range, or if the declared heads do not divide the rows of
            a weight.
        RuntimeError: for options that exclude each other, or weights whose rows cannot be seen
            (the flattened shards of FSDP1).

    Example:
        >>> optimizer = AdamP(model.parameters(), lr=1e-3, weight_decay=1e-2)
        >>> loss(model(inputs), targets).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()

    Source: Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, Algorithm 2; defaults are
    those of NAVER's `adamp` 0.3.0.
    """

    state_aliases: ClassVar[dict[str, tuple[str, ...]]] = {
        "step": (),
        "exp_avg": (),
        "exp_avg_sq": (),
    }
    _unsigned: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy or a checkpoint."""
        super().__setstate__(state)
        for group in self.param_groups:
            for param in group["params"]:
                param_state = self.state.get(param)
                if param_state and not isinstance(param_state["step"], Tensor):
                    # adamp 0.3.0 and timm count in Python integers.
                    param_state["step"] = _new_step(param, group, float(param_state["step"]))

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        del group
        return "step", "exp_avg", "exp_avg_sq"

    def _new_state(self, param: Tensor, group: Mapping[str, Any], name: str) -> Tensor:
        if name == "step":
            return _new_step(param, group, 0.0)
        return new_moment(param, group["state_dtype"], signed=name not in self._unsigned)

    def _rule(self, group: Mapping[str, Any]) -> AdamRule:
        beta1, beta2 = group["betas"]
        return AdamRule(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            delta=group["delta"],
            wd_ratio=group["wd_ratio"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            capturable=group["capturable"],
            scale_invariant=group["scale_invariant"],
        )


def adamp(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    scale_invariant: ScaleInvariant = "auto",
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    delta: float,
    wd_ratio: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Functional form of `AdamP`: takes one step and changes the tensors in place.

    Args:
        params: weights of any shapes.
        grads: a gradient for each.
        exp_avgs: first moments, float32 or, for float64 weights, float64.
        exp_avg_sqs: second moments, of the same dtypes.
        state_steps: 0-d tensors that count the steps of each weight; increased by one.
        foreach: see `AdamP`.
        capturable: see `AdamP`.
        differentiable: see `AdamP`.
        fused: see `AdamP`.
        scale_invariant: see `AdamP`.
        beta1: see `betas` of `AdamP`.
        beta2: see `betas` of `AdamP`.
        lr: see `AdamP`.
        weight_decay: see `AdamP`.
        eps: see `AdamP`.
        delta: see `AdamP`.
        wd_ratio: see `AdamP`.
        nesterov: see `AdamP`.
        maximize: see `AdamP`.
    """
    rule = AdamRule(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        delta=delta,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
        maximize=maximize,
        capturable=capturable,
        scale_invariant=scale_invariant,
    )
    flags, moments = Flags(foreach, fused, differentiable), (exp_avgs, exp_avg_sqs)
    step_once(Collected(params, params, list(grads), moments, state_steps, rule, flags))


def _new_step(param: Tensor, group: Mapping[str, Any], count: float) -> Tensor:
    # As in torch.optim: counts are kept off the device unless they must not be read back. Below
    # float32 a count would stop: 256 + 1 is 256 in bfloat16.
    on_device = group["capturable"] or group["fused"]
    device = param.device if on_device else "cpu"
    return torch.tensor(count, dtype=torch.float32, device=device)
