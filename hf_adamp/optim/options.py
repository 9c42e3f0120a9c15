"""The optimizers' options: which values they take, checked and converted once, in one place.

Taken is what torch.optim takes: any real number, any sequence. Kept are plain Python values, so
that no step converts them again and a checkpoint holds nothing but what torch.load trusts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from decimal import Decimal
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .scale_invariance import check_scale_invariant

__all__ = ["check_options", "real_number"]


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as plain Python values, or raise on the first that makes no sense.

    Real numbers of any kind become floats (NumPy scalars, arrays and tensors of one element),
    `betas` and `scale_invariant` tuples, and the words true, false and none what they mean. `lr`
    and `betas` stay tensors where they are tensors, since those may change from step to step.
    Names that are no option are returned as they are.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range or a combination that is ambiguous.
        RuntimeError: for a combination that no kernel computes, as in torch.optim.
    """
    checked = {
        name: _CHECKS[name](name, value) if name in _CHECKS else value
        for name, value in options.items()
    }
    _check_combinations(checked)
    return checked


def real_number(
    name: str, value: object, *, below: float = math.inf, most: float = math.inf
) -> float:
    """A real number of any kind as a float, at least 0.

    Args:
        name: what the messages call it.
        value: a Python number, or a NumPy scalar, array or tensor of one element.
        below: the number that it must stay below.
        most: the largest number that it may be, where that is finite.

    Raises:
        TypeError: it is no real number.
        ValueError: it is out of range, not finite, or has several elements.
    """
    plain = _element(name, value)
    if isinstance(plain, bool) or not isinstance(plain, (Real, Decimal)):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}.")
    try:
        number = float(plain)
    except OverflowError:
        number = math.inf
    if not (0 <= number < below and number <= most):
        if math.isfinite(below):
            interval = f"in [0, {below:g})"
        else:
            interval = f"in [0, {most:g}]" if math.isfinite(most) else "at least 0 and finite"
        raise ValueError(f"{name}={value!r} must be {interval}.")
    return number


def _element(name: str, value: object) -> object:
    """The one element of an array or a tensor; anything else as it is."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires a gradient, which only lr and betas may; "
            "pass its value, detach().item()."
        )
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
    if size != 1:
        raise ValueError(f"{name} has {size} elements; it must have one.")
    try:
        return item()
    except RuntimeError:
        # A meta or fake tensor, or one of several that torch.func.vmap goes through.
        raise TypeError(f"{name}={value!r} must be a number that can be read.") from None


def _number_or_tensor(name: str, value: object, *, below: float = math.inf) -> float | Tensor:
    if not isinstance(value, Tensor):
        return real_number(name, value, below=below)
    if value.numel() != 1:
        raise ValueError(f"{name} has {value.numel()} elements; a tensor must have one.")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} is a tensor of {value.dtype}; it must hold a real number.")
    if value.is_cpu:
        # On a device its value is not looked at: the host would wait for it.
        try:
            number = value.detach().item()
        except RuntimeError:
            return value
        real_number(name, number, below=below)
    return value


def _betas(name: str, value: Any) -> tuple[float | Tensor, float | Tensor]:
    pair = value.tolist() if isinstance(value, Tensor) and not value.requires_grad else value
    try:
        if isinstance(pair, (str, bytes, Mapping, Set)):
            raise TypeError
        len(pair)
        first, second = pair
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}={value!r} must be a pair of numbers, such as (0.9, 0.999)."
        ) from None
    betas = (
        _number_or_tensor(f"{name}[0]", first, below=1.0),
        _number_or_tensor(f"{name}[1]", second, below=1.0),
    )
    if isinstance(first, Tensor) != isinstance(second, Tensor):
        raise ValueError(f"{name}={value!r} must be two floats or two tensors.")
    return betas


_MEANINGS = {"true": True, "false": False, "none": None}


def _truth(value: object) -> object:
    """The value as a bool or None where it is one, or a word that cannot mean anything else."""
    if isinstance(value, str):
        return _MEANINGS.get(value.strip().lower(), value)
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return item()
    return value


def _switch(name: str, value: object) -> bool:
    truth = _truth(value)
    if not isinstance(truth, bool):
        raise TypeError(f"{name}={value!r} must be True or False.")
    return truth


def _switch_or_none(name: str, value: object) -> bool | None:
    truth = _truth(value)
    if truth is not None and not isinstance(truth, bool):
        raise TypeError(f"{name}={value!r} must be True, False or None (choose by weight).")
    return truth


def _one_of(*allowed: str | None) -> Callable[[str, object], str | None]:
    def check(name: str, value: object) -> str | None:
        meant = None if None in allowed and _truth(value) is None else value
        for word in allowed:
            if isinstance(meant, (str, type(None))) and meant == word:
                return word
        words = [f'"{word}"' if word else str(word) for word in allowed]
        raise ValueError(f"{name}={value!r} must be {', '.join(words[:-1])} or {words[-1]}.")

    return check


_below_one = partial(real_number, below=1.0)
_share = partial(real_number, most=1.0)

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "lr": _number_or_tensor,
    "betas": _betas,
    "momentum": _below_one,
    "dampening": _share,
    "eps": real_number,
    "weight_decay": real_number,
    "delta": real_number,
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
