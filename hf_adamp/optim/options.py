"""The optimizers' options: which values they take, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .invariance import check_scale_invariant

__all__ = ["check_options"]


def check_options(options: Mapping[str, Any]) -> None:
    """Raise on the first option whose value, or combination with another, makes no sense.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range or a combination that is ambiguous.
        RuntimeError: for a combination that no kernel computes, as in torch.optim.
    """
    for name, check in _CHECKS.items():
        if name in options:
            check(name, options[name])
    _check_combinations(options)


def _number(name: str, value: object, *, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}.")
    if not 0 <= value < below:
        interval = f"in [0, {below:g})" if math.isfinite(below) else "at least 0 and finite"
        raise ValueError(f"{name}={value!r} must be {interval}.")


def _number_or_tensor(name: str, value: object, *, below: float = math.inf) -> None:
    if not isinstance(value, Tensor):
        _number(name, value, below=below)
    elif value.numel() != 1:
        # Its value is not looked at: it lives on a device and changes from step to step.
        raise ValueError(f"{name} has {value.numel()} elements; a tensor must have one.")


def _share(name: str, value: object) -> None:
    _number(name, value)
    if isinstance(value, (int, float)) and value > 1:
        raise ValueError(f"{name}={value!r} must be in [0, 1].")


def _betas(name: str, value: object) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}={value!r} must be a pair of numbers, such as (0.9, 0.999).")
    for index, beta in enumerate(value):
        _number_or_tensor(f"{name}[{index}]", beta, below=1.0)
    if isinstance(value[0], Tensor) != isinstance(value[1], Tensor):
        raise ValueError(f"{name}={value!r} must be two floats or two tensors.")


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False.")


def _switch_or_none(name: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True, False or None (choose by weight).")


def _one_of(*allowed: object) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in allowed:
            words = [f'"{word}"' if word else str(word) for word in allowed]
            raise ValueError(f"{name}={value!r} must be {', '.join(words[:-1])} or {words[-1]}.")

    return check


def _below_one(name: str, value: object) -> None:
    _number(name, value, below=1.0)


_CHECKS: dict[str, Callable[[str, object], None]] = {
    "lr": _number_or_tensor,
    "betas": _betas,
    "momentum": _below_one,
    "dampening": _share,
    "eps": _number,
    "weight_decay": _number,
    "delta": _number,
    "wd_ratio": _share,
    "nesterov": _switch,
    "maximize": _switch,
    "foreach": _switch_or_none,
    "capturable": _switch,
    "differentiable": _switch,
    "fused": _switch_or_none,
    "scale_invariant": check_scale_invariant,
    "rounding": _one_of("nearest", "stochastic", "kahan"),
    "state_dtype": _one_of(None, "bfloat16", "8bit"),
}


def _check_combinations(options: Mapping[str, Any]) -> None:
    if options.get("nesterov") and options.get("momentum") == 0:
        raise ValueError("nesterov=True needs momentum above 0; momentum is 0.")
    if options.get("fused") and options.get("foreach"):
        raise RuntimeError("fused=True and foreach=True exclude each other; set one of them.")
    if options.get("fused") and options.get("differentiable"):
        raise RuntimeError("fused=True is not differentiable; use fused=None.")
    for name, default in (("rounding", "nearest"), ("state_dtype", None)):
        for flag in ("capturable", "differentiable"):
            if options.get(flag) and options.get(name, default) != default:
                raise RuntimeError(
                    f"{name}={options[name]!r} and {flag}=True exclude each other; set one of them."
                )
    if options.get("foreach") and options.get("differentiable"):
        raise RuntimeError("foreach=True is not differentiable; use foreach=None.")
    if options.get("foreach") and not options.get("capturable"):
        tensors = {"lr": options.get("lr")}
        if "betas" in options:
            tensors |= {f"betas[{i}]": beta for i, beta in enumerate(options["betas"])}
        for name, value in tensors.items():
            if "betas" in options and isinstance(value, Tensor):
                raise ValueError(
                    f"{name} as a tensor needs capturable=True with foreach=True; use a float."
                )
