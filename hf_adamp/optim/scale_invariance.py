"""Declared scale invariance: the option `scale_invariant`, in the place of the paper's test.

The paper tests in every step whether a weight behaves as if it were scale-invariant. If you know
that it is, and whether per row, per head or as a whole, declare it. This goes beyond Heo et al.,
ICLR 2021, https://arxiv.org/abs/2006.08217; the projection is theirs.
"""

from __future__ import annotations

import math
import re
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
# Groups of rows on a command line: 512+64-8.
_GROUP = re.compile(r"[+-]?\s*\d+")
_GROUPS = re.compile(r"[+-]?\s*\d+(\s*[+-]\s*\d+)*")
# Which of a stack's last two dimensions holds the outputs, each a row.
_STACKS = ("out_in", "in_out")
_ALLOWED = (
    '"auto", "row", "tensor", ("head", heads), ("head_dim", rows of a head), '
    '("rows", (rows of each group, negative where not invariant, …)), ("experts", "out_in" or '
    '"in_out") or False'
)


def check_scale_invariant(name: str, value: Any) -> ScaleInvariant:
    """Return the value as the option keeps it, or raise if the option does not take it.

    A pair may be any sequence, with integers of any kind. Text is read as on a command line:
    `false`, `head:8`, `rows:512-64`, `experts:in_out`.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a word that is unknown, a number of heads or rows that is 0, or negative
            but for some groups of rows.
    """
    given = _from_text(value) if isinstance(value, str) else value
    if given is False or (isinstance(given, str) and given in _WORDS):
        return given
    if isinstance(given, Sequence) and len(given) == 2 and isinstance(given[0], str):
        unit, second = str(given[0]), given[1]
        if unit in _NUMBERED:
            return unit, _count(name, value, second)
        if unit == "experts" and second in _STACKS:
            return unit, str(second)
        if unit == "rows" and len(second := _as_tuple(second)):
            return unit, _rows_of_groups(name, value, second)
    error = ValueError if isinstance(value, Sequence) else TypeError
    raise error(f"{name}={value!r} must be {_ALLOWED}.")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    is_listing = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if is_listing else ()


def _integer(name: str, value: Any, number: Any, where: str) -> int:
    try:
        return index(None if isinstance(number, bool) else number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} must have {where}.") from None


def _count(name: str, value: Any, number: Any) -> int:
    count = _integer(name, value, number, "an integer as its second element")
    if count < 1:
        raise ValueError(f"{name}={value!r} must have at least 1 as its second element.")
    return count


def _rows_of_groups(name: str, value: Any, groups: Sequence[Any]) -> tuple[int, ...]:
    """The rows of each group; negative, those of a group that is not invariant."""
    counts = [_integer(name, value, rows, "integers in its second element") for rows in groups]
    if 0 in counts:
        raise ValueError(f"{name}={value!r} must have at least 1 as its second element's numbers.")
    if max(counts) < 0:
        raise ValueError(f"{name}={value!r} has no invariant group of rows; use False.")
    return tuple(counts)


def _from_text(text: str) -> Any:
    word = text.strip().lower()
    unit, colon, rest = (part.strip() for part in word.partition(":"))
    if not colon:
        return False if word == "false" else word
    if unit == "rows" and _GROUPS.fullmatch(rest):
        return unit, tuple(int(rows.replace(" ", "")) for rows in _GROUP.findall(rest))
    return (unit, int(rest)) if rest.isdecimal() else (unit, rest)


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

    Negative where a vector is declared not to be invariant; empty where rows stand for themselves.

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
        rows = sum(map(abs, number))
        fits, sizes, needs = rows == shape[0], number, f"{rows} rows"
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
    """How many of these rows of a weight belong to each of its vectors, with the vector's sign."""
    if not vectors:
        return ()
    # The vector of a row is the number of ends that it does not lie before.
    ends = list(accumulate(map(abs, vectors)))
    counts = Counter(bisect_right(ends, row) for row in rows)
    return tuple(
        -counts[vector] if size < 0 else counts[vector] for vector, size in enumerate(vectors)
    )


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
