"""Weights in words: a table with one line for those that are alike, and a sentence about all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from hf_adamp.diagnostics.probe.weights import (
    Family,
    WeightReport,
    families,
    granularity_of,
    in_words,
)

__all__ = ["legend", "summary", "table", "wrapped"]

_HEADINGS = ("weight", "count", "module", "invariant", "change", "effect", "cosine", "AdamP's test")
_LEGEND = {
    "invariant": "the parts that can each be scaled without changing the output: rows, groups of "
    "rows (heads; or groups of the sizes given, with − before what cannot be scaled), outputs of "
    "experts, or the tensor as a whole; +bias if the bias is scaled with them",
    "change": "of the output, relative, when they are scaled by 0.5, 1 and 2, for which the norms' "
    "eps is the reason",
    "effect": "of a random change as large as the weight, to compare with",
    "cosine": "|g·w| / (|g||w|), the largest over parts and gradients",
}
_INDENT = 11
# What a column of words is not made narrower than.
_NARROWEST = 8


def table(weights: Iterable[WeightReport], width: int | None = None) -> str:
    """A line for each family of weights; where that is too wide, its name above its numbers.

    Args:
        weights: The weights.
        width: Columns that there are; None for as many as it takes.
    """
    lines = [_HEADINGS, *(_cells(family) for family in families(weights))]
    whole = _aligned(lines)
    is_narrow = width is not None and max(map(len, whole.splitlines())) > width
    return _stacked(lines, width) if is_narrow and width is not None else whole


def legend(width: int | None = None) -> str:
    """What the columns of the table say."""
    if width is None:
        return "\n".join(f"{word:<{_INDENT}}{meaning}" for word, meaning in _LEGEND.items())
    return "\n".join(
        wrapped(f"{word:<{_INDENT}}{meaning}", width, _INDENT) for word, meaning in _LEGEND.items()
    )


def wrapped(text: str, width: int | None, indent: int = 0) -> str:
    """A text in lines of at most this width, all but the first indented."""
    if width is None:
        return text
    return textwrap.fill(text, max(width, 2 * indent), subsequent_indent=" " * indent)


def _cells(family: Family) -> tuple[str, ...]:
    first = family.first
    count = str(len(family.members))
    if first.effect == 0:
        return (family.pattern, count, first.module, "no effect", "", "", "", "")
    change, effect = (max(getattr(w, k) for w in family.members) for k in ("change", "effect"))
    cosine = max(w.cosine or 0.0 for w in family.members)
    numbers = (f"{value:.1e}" for value in (change, effect, cosine))
    return (family.pattern, count, first.module, _verdict(first), *numbers, _test(family))


def _verdict(weight: WeightReport) -> str:
    if weight.with_bias is not None:
        joint = granularity_of(weight.with_bias, weight.shape[0])
        return f"{in_words(weight.granularity)}; {in_words(joint)} +bias"
    if weight.granularity is None and weight.partial is not None:
        groups, share = weight.partial
        return f"– ({share:.0%} of {groups} groups)"
    return in_words(weight.granularity)


def _test(family: Family) -> str:
    misfires = family.mean(lambda w: w.misfires)
    wrong = f"misfires {misfires:.0%}"
    if family.first.invariant_numel < family.first.numel:
        # Neither view is right where nothing, or a part only, is invariant.
        return wrong if misfires else "–"
    found = "finds the whole" if _has_parts(family.first) else "finds it"
    caught = f"{found} {family.mean(lambda w: w.caught or 0.0):.0%}"
    return f"{caught}, {wrong}" if misfires else caught


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _stacked(lines: Sequence[Sequence[str]], width: int) -> str:
    """The table with each name on a line of its own, and cells that are too wide in several."""
    columns = list(zip(*(cells[1:] for cells in lines), strict=True))
    widths = [max(map(len, column)) for column in columns]
    # Words can be wrapped, numbers cannot.
    wordy = [i for i, column in enumerate(columns) if not all(map(_is_number, column[1:]))]
    while wordy and 2 + sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(wordy, key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    printed = []
    for name, *cells in lines:
        printed += textwrap.wrap(name, width, break_on_hyphens=False)
        parts = [
            textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, widths, strict=True)
        ]
        for row in zip_longest(*parts, fillvalue=""):
            line = "  ".join(part.ljust(size) for part, size in zip(row, widths, strict=True))
            printed.append(f"  {line}".rstrip())
    return "\n".join(printed)


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit()


def summary(weights: Iterable[WeightReport]) -> str:
    """Say in one sentence whether AdamP is worth trying.

    Below a tenth of the elements little can come of it. AdamP by itself needs its test to find
    the weights; where it mostly does not, they have to be declared.
    """
    alive = [w for w in weights if w.effect > 0]
    if not alive:
        return (
            "nothing can be told: no weight has an effect on the output for these inputs; pass "
            "others (larger images, more samples, inputs= or --inputs)."
        )
    invariant = [w for w in alive if w.granularity is not None]
    part = sum(w.invariant_numel for w in invariant)
    share = part / max(sum(w.numel for w in alive), 1)
    fact = f"{len(invariant)} of {len(alive)} weights ({share:.0%} of their elements)"
    if not invariant:
        return f"AdamP is not worth trying: none of {len(alive)} weights is scale-invariant."
    if share < 0.1:
        return f"expect little from AdamP: only {fact} are scale-invariant."
    caught = sum(w.invariant_numel * (w.caught or 0.0) for w in invariant) / part
    heads = ", heads as part of the whole only" if any(map(_has_parts, invariant)) else ""
    if caught >= 0.5:
        return (
            f"AdamP is worth trying: {fact} are scale-invariant, and its test finds {caught:.0%} "
            f"of these{heads}."
        )
    return (
        f"AdamP is worth trying with declared weights only (scale_invariance=report): {fact} are "
        f"scale-invariant, but its test finds {caught:.0%} of these{heads}."
    )


def _has_parts(weight: WeightReport) -> bool:
    return isinstance(weight.granularity, tuple)
