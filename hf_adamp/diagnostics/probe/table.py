"""A probe's report in words: a table with one line for weights that are alike, and a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hf_adamp.diagnostics.probe.report import (
    Granularity,
    ProbeReport,
    WeightReport,
    granularity_of,
)

__all__ = ["Family", "families", "summary", "text", "word"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_HEADINGS = ("weight", "count", "module", "invariant", "change", "effect", "cosine", "AdamP's test")
_LEGEND = """\
invariant  the parts that can each be scaled without changing the output: rows, equal groups of
           rows (heads), or the tensor as a whole; "+bias" if the bias is scaled with them
change     of the output, relative, when they are scaled by 0.5, 1 and 2; the norms' eps causes it
effect     of a random change as large as the weight, to compare with
cosine     |g·w| / (|g||w|), the largest over parts and gradients"""


@dataclass(frozen=True)
class Family:
    """Weights that differ by the numbers in their names only, and came out alike."""

    pattern: str
    members: tuple[WeightReport, ...]

    @property
    def first(self) -> WeightReport:
        """The member whose class and granularity all share."""
        return self.members[0]

    @property
    def numel(self) -> int:
        """Elements of all members."""
        return sum(member.numel for member in self.members)

    def mean(self, value: Callable[[WeightReport], float]) -> float:
        """The mean of a number over the members."""
        return sum(map(value, self.members)) / len(self.members)


def families(report: ProbeReport) -> list[Family]:
    """Gather the weights into families, in the order of their first members."""
    found: dict[tuple[object, ...], list[WeightReport]] = {}
    for name, weight in report.weights.items():
        pattern = _NUMBER.sub("*", name)
        kind = (pattern, weight.module, weight.granularity, weight.with_bias, weight.effect == 0)
        found.setdefault(kind, []).append(weight)
    return [
        Family(members[0].name if len(members) == 1 else str(kind[0]), tuple(members))
        for kind, members in found.items()
    ]


def word(granularity: Granularity) -> str:
    """A granularity as the table has it."""
    if granularity is None:
        return "–"
    return granularity if isinstance(granularity, str) else f"{granularity[0]} ({granularity[1]})"


def text(report: ProbeReport) -> str:
    """The report as `print` shows it."""
    lines = [_HEADINGS, *(_cells(family) for family in families(report))]
    count = f"{report.gradients} gradients, delta {report.delta:g}"
    parts = [f"{report.model}: {report.summary}", _aligned(lines)]
    parts.append(f"{_LEGEND}\nAdamP's test: over {count}; probed in {report.seconds:.1f} s")
    parts.extend(report.notes)
    return "\n\n".join(parts)


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
        return f"{word(weight.granularity)}; {word(joint)} +bias"
    if weight.partial is not None:
        groups, share = weight.partial
        return f"– ({share:.0%} of {groups} groups)"
    return word(weight.granularity)


def _test(family: Family) -> str:
    misfires = family.mean(lambda w: w.misfires)
    wrong = f"misfires {misfires:.0%}"
    if family.first.granularity is None:
        return wrong if misfires else "–"
    found = "finds the whole" if _is_head(family.first) else "finds it"
    caught = f"{found} {family.mean(lambda w: w.caught or 0.0):.0%}"
    return f"{caught}, {wrong}" if misfires else caught


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def summary(report: ProbeReport) -> str:
    """Say in one sentence whether AdamP is worth trying.

    Below a tenth of the elements little can come of it. AdamP by itself needs its test to find
    the weights; where it mostly does not, they have to be declared.
    """
    alive = [w for w in report.weights.values() if w.effect > 0]
    invariant = [w for w in alive if w.groups is not None]
    share = _numel(invariant) / max(_numel(alive), 1)
    fact = f"{len(invariant)} of {len(alive)} weights ({share:.0%} of their elements)"
    if not invariant:
        return f"AdamP is not worth trying: none of {len(alive)} weights is scale-invariant."
    if share < 0.1:
        return f"expect little from AdamP: only {fact} are scale-invariant."
    caught = sum(w.numel * (w.caught or 0.0) for w in invariant) / _numel(invariant)
    heads = ", heads as part of the whole only" if any(_is_head(w) for w in invariant) else ""
    if caught >= 0.5:
        return (
            f"AdamP is worth trying: {fact} are scale-invariant, and its test finds {caught:.0%} "
            f"of these{heads}."
        )
    return (
        f"AdamP is worth trying with declared weights only (scale_invariance=report): {fact} are "
        f"scale-invariant, but its test finds {caught:.0%} of these{heads}."
    )


def _is_head(weight: WeightReport) -> bool:
    return isinstance(weight.granularity, tuple)


def _numel(weights: Iterable[WeightReport]) -> int:
    return sum(weight.numel for weight in weights)
