"""Declared scale invariance: the option `scale_invariant`, in the place of the paper's test.

The paper tests in every step whether a weight behaves as if it were scale-invariant. If you know
that it is, and whether per row, per head or as a whole, declare it. This goes beyond Heo et al.,
ICLR 2021, https://arxiv.org/abs/2006.08217; the projection is theirs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import index
from typing import Any, TypeAlias

import torch

from .layout import Extent, Piece, Placement, has_rows

__all__ = [
    "ScaleInvariant",
    "check_scale_invariant",
    "matrix_dims",
    "place_whole",
    "rows_of_vectors",
    "stacked_pieces",
    "threshold",
    "vectors_of",
]

ScaleInvariant: TypeAlias = str | bool | tuple[str, int | str | tuple[int, ...]]

_WORDS = ("auto", "row", "tensor")
# A number of heads, or the rows of one.
_NUMBERED = ("head", "head_dim")
# Which of a stack's last two dimensions holds the outputs, each a row.
_STACKS = ("out_in", "in_out")
_ALLOWED = (
    '"auto", "row", "tensor", ("head", heads), ("head_dim", rows of a head), '
    '("rows", (rows of each group, …)), ("experts", "out_in" or "in_out") or False'
)


def check_scale_invariant(name: str, value: Any) -> ScaleInvariant:
    """Return the value as the option keeps it, or raise if the option does not take it.

    A pair may be any sequence, with integers of any kind. Text is read as on a command line:
    `false`, `head:8`, `rows:512+64`, `experts:in_out`.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a word that is unknown, or a number of heads or rows below 1.
    """
    given = _from_text(value) if isinstance(value, str) else value
    if given is False or (isinstance(given, str) and given in _WORDS):
        return given
    if isinstance(given, Sequence) and len(given) == 2 and isinstance(given[0], str):
        unit, second = str(given[0]), given[1]
        if unit in _NUMBERED:
            return unit, _count(name, value, second, "an integer as its second element")
        if unit == "experts" and second in _STACKS:
            return unit, str(second)
        if unit == "rows" and isinstance(second, Sequence) and len(second):
            what = "integers in its second element"
            return unit, tuple(_count(name, value, rows, what) for rows in second)
    error = ValueError if isinstance(value, Sequence) else TypeError
    raise error(f"{name}={value!r} must be {_ALLOWED}.")


def _count(name: str, value: Any, number: Any, what: str) -> int:
    try:
        count = index(None if isinstance(number, bool) else number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} must have {what}.") from None
    if count < 1:
        raise ValueError(f"{name}={value!r} must have at least 1 as its second element.")
    return count


def _from_text(text: str) -> Any:
    word = text.strip().lower()
    unit, colon, rest = (part.strip() for part in word.partition(":"))
    if not colon:
        return False if word == "false" else word
    numbers = [number.strip() for number in rest.split("+")]
    if all(map(str.isdecimal, numbers)):
        return (unit, tuple(map(int, numbers))) if unit == "rows" else (unit, int(numbers[0]))
    return unit, rest


def threshold(value: ScaleInvariant, delta: float) -> float:
    """The δ to hold cosines against: infinite for what is declared, 0 for what never projects.

    A cosine that is not a number is below neither, so a gradient that is not finite has AdamW's
    outcome whatever is declared.
    """
    if value == "auto":
        return delta
    return math.inf if value else 0.0


def matrix_dims(
    value: ScaleInvariant, shape: torch.Size, name: str = "a weight"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which dimensions number the rows of a weight, and which the elements of a row.

    Raises:
        ValueError: for a stack of experts that does not have three dimensions.
    """
    if not (isinstance(value, tuple) and value[0] == "experts"):
        return (0,), tuple(range(1, len(shape)))
    if len(shape) != 3:
        raise ValueError(
            f"scale_invariant={value!r} needs three dimensions, but {name} has shape "
            f"{tuple(shape)}; put this weight into a group of its own."
        )
    return ((0, 1), (2,)) if value[1] == "out_in" else ((0, 2), (1,))


def vectors_of(value: ScaleInvariant, shape: torch.Size, name: str = "a weight") -> tuple[int, ...]:
    """The rows of each vector that a weight is declared to consist of.

    Empty where its rows stand for themselves.

    Raises:
        ValueError: if the weight's rows cannot be shared out like this.
    """
    if value == "tensor":
        return (shape[0],)
    if not isinstance(value, tuple) or value[0] == "experts":
        matrix_dims(value, shape, name)
        return ()
    unit, number = value
    if isinstance(number, tuple):
        fits, sizes, needs = sum(number) == shape[0], number, f"{sum(number)} rows"
    else:
        assert isinstance(number, int)
        heads = number if unit == "head" else max(1, shape[0] // number)
        fits, needs = shape[0] % number == 0, f"a multiple of {number} rows"
        sizes = (shape[0] // heads,) * heads
    if not fits:
        raise ValueError(
            f"scale_invariant={value!r} needs {needs}, but {name} of shape {tuple(shape)} has "
            f"{shape[0]}; give numbers that fit, or put this weight into a group of its own."
        )
    return sizes


def rows_of_vectors(rows: Sequence[int], vectors: Sequence[int]) -> tuple[int, ...]:
    """How many of these rows of a weight belong to each of its vectors."""
    if not vectors:
        return ()
    # The vector of a row is the number of ends that it does not lie before.
    ends = list(accumulate(vectors))
    counts = Counter(bisect_right(ends, row) for row in rows)
    return tuple(counts[vector] for vector in range(len(vectors)))


def place_whole(value: ScaleInvariant, shape: torch.Size) -> Placement:
    """Where the rows of a weight lie that is whole here."""
    if not has_rows(shape):
        return Placement()
    rows, columns = matrix_dims(value, shape)
    if len(rows) == 1:
        return Placement(Extent.of(shape, vectors_of(value, shape)))
    extent = Extent(shape[0] * shape[rows[1]], shape[columns[0]], shape.numel())
    return Placement(extent, stacked_pieces(value, shape))


def stacked_pieces(value: ScaleInvariant, shape: torch.Size) -> tuple[Piece, ...]:
    """The blocks of a contiguous stack of experts, or of this process's part of it."""
    experts, outer, inner = shape
    if value[1] == "out_in":  # type: ignore[index]
        return (Piece(0, 0, (experts * outer, inner), (inner, 1)),)
    size = outer * inner
    return tuple(
        Piece(expert * inner, expert * size, (inner, outer), (1, inner))
        for expert in range(experts)
    )
