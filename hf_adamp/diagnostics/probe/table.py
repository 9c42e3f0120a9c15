"""Weights in words: a table with one line for those that are alike, and a sentence about all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_adamp.diagnostics.probe.weights import (
    Family,
    WeightReport,
    families,
    granularity_of,
    in_words,
)

__all__ = ["legend", "summary", "table"]

_HEADINGS = ("weight", "count", "module", "invariant", "change", "effect", "cosine", "AdamP's test")
_LEGEND = """\
invariant  the parts that can each be scaled without changing the output: rows, groups of rows
           (heads; or groups of the sizes given, "−" before what cannot be scaled), outputs of
           experts, or the tensor as a whole; "+bias" if the bias is scaled with them
change     of the output, relative, when they are scaled by 0.5, 1 and 2; the norms' eps causes it
effect     of a random change as large as the weight, to compare with
cosine     |g·w| / (|g||w|), the largest over parts and gradients"""


def table(weights: Iterable[WeightReport]) -> str:
    """One line for each family of weights."""
    return _aligned([_HEADINGS, *(_cells(family) for family in families(weights))])


def legend() -> str:
    """What the columns of the table say."""
    return _LEGEND


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
    if family.first.granularity is None:
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


def summary(weights: Iterable[WeightReport]) -> str:
    """Say in one sentence whether AdamP is worth trying.

    Below a tenth of the elements little can come of it. AdamP by itself needs its test to find
    the weights; where it mostly does not, they have to be declared.
    """
    alive = [w for w in weights if w.effect > 0]
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
