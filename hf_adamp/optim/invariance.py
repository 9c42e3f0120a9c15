"""Declared scale invariance: the option `scale_invariant`, in the place of the paper's test.

The paper tests in every step whether a weight behaves as if it were scale-invariant. Who knows
that it is, and whether per row, per head or as a whole, can say so instead. This is ours, beyond
Heo et al., ICLR 2021, https://arxiv.org/abs/2006.08217, of whom it keeps the projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import torch

__all__ = ["ScaleInvariant", "check_scale_invariant", "count_heads", "threshold"]

ScaleInvariant: TypeAlias = str | bool | tuple[str, int]

_WORDS = ("auto", "row", "tensor")
# A number of heads, or the rows of one.
_PAIRS = ("head", "head_dim")
_ALLOWED = '"auto", "row", "tensor", ("head", heads), ("head_dim", rows of a head) or False'


def check_scale_invariant(name: str, value: Any) -> ScaleInvariant:
    """Return the value as the option keeps it, or raise if the option does not take it.

    A pair may be any sequence, with an integer of any kind. Text is read as on a command line:
    `false`, `head:8`.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a word that is unknown, or a number of heads or rows below 1.
    """
    given = _from_text(value) if isinstance(value, str) else value
    if given is False or (isinstance(given, str) and given in _WORDS):
        return given
    if isinstance(given, Sequence) and len(given) == 2 and given[0] in _PAIRS:
        second: Any = given[1]
        try:
            number = index(None if isinstance(second, bool) else second)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"{name}={value!r} must have an integer as its second element."
            ) from None
        if number < 1:
            raise ValueError(f"{name}={value!r} must have at least 1 as its second element.")
        return str(given[0]), number
    error = ValueError if isinstance(value, Sequence) else TypeError
    raise error(f"{name}={value!r} must be {_ALLOWED}.")


def _from_text(text: str) -> str | bool | tuple[str, int]:
    word = text.strip().lower()
    unit, colon, number = (part.strip() for part in word.partition(":"))
    if colon and number.isdecimal():
        return unit, int(number)
    return False if word == "false" else word


def threshold(value: ScaleInvariant, delta: float) -> float:
    """The δ to hold cosines against: infinite for what is declared, 0 for what never projects.

    A cosine that is not a number is below neither, so a gradient that is not finite has AdamW's
    outcome whatever is declared.
    """
    if value == "auto":
        return delta
    return math.inf if value else 0.0


def count_heads(value: ScaleInvariant, shape: torch.Size, name: str = "a weight") -> int:
    """How many vectors a weight is declared to consist of; 0 where its rows stand for themselves.

    Raises:
        ValueError: if the weight's rows cannot be shared out evenly.
    """
    if value == "tensor":
        return 1
    if not isinstance(value, (tuple, list)):
        return 0
    unit, number = value
    if shape[0] % number:
        raise ValueError(
            f"scale_invariant={value!r} needs a multiple of {number} rows, but {name} of shape "
            f"{tuple(shape)} has {shape[0]}; give a number that divides them, or put this weight "
            "into a group of its own."
        )
    return number if unit == "head" else shape[0] // number
