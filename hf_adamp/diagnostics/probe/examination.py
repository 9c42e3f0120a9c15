"""Every weight of a model in float64, one after the other: its grouping, and AdamP's test on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_adamp.diagnostics.probe.evaluation import Gradients, Subject
from hf_adamp.diagnostics.probe.folding import ROWS, Grouping
from hf_adamp.diagnostics.probe.scaling import Finding, Screen, confirm, find
from hf_adamp.optim.layout import Extent, Layout
from hf_adamp.optim.projection import View, choose_views, total

__all__ = ["Examined", "examine", "steps_of"]

# Gradients that screen the groupings: random readings of the output.
_READINGS = 3
# AdamP's default, which keeps the norms of zero rows off zero in its test.
_EPS = 1e-8


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        weights: The fields of each weight's `WeightReport`.
        gradients: How many gradients the loss gave.
        notes: What the reader should know of how it was done, a sentence each.
        certain: Whether all values were large enough to be measured.
    """

    weights: dict[str, dict[str, Any]]
    gradients: int
    notes: tuple[str, ...]
    certain: bool


def steps_of(names: Sequence[str], gradients: int) -> int:
    """How many steps an examination has: three that serve all weights, gradients, and weights."""
    return 3 + gradients + len(names)


def examine(
    subject: Subject,
    names: Sequence[str],
    gradients: int,
    delta: float,
    generator: torch.Generator,
    advance: Callable[[], object],
) -> Examined:
    """Examine the weights of these names; `advance` is called after each of `steps_of` steps."""
    subject.settle()
    precise = subject.outputs(shrink_eps=True)
    plain = subject.outputs(shrink_eps=False)
    certain = not subject.eps_decides(precise)
    advance()
    readings = subject.reading_gradients(_READINGS, shrink_eps=True)
    advance()
    drawn = []
    for gradient in subject.loss_gradients(gradients):
        drawn.append(gradient)
        advance()
    views = [_views(subject, names, gradient, delta) for gradient in drawn]
    confirmed = confirm(subject, names, readings, precise, generator)
    advance()
    found = {}
    for name, chosen in zip(names, zip(*views, strict=True), strict=True):
        finding = find(subject, [name], readings, precise, plain, generator, confirmed=confirmed)
        found[name] = {
            "shape": tuple(subject.copies[name].shape),
            **_groups(finding.grouping),
            "change": finding.change,
            "effect": finding.effect,
            "cosine": _cosine(subject, name, finding, drawn),
            "channel": chosen.count(View.CHANNEL) / len(drawn),
            "layer": chosen.count(View.LAYER) / len(drawn),
            "with_bias": _with_bias(subject, name, finding, readings, precise, plain, generator),
            "partial": finding.partial,
        }
        advance()
    return Examined(found, len(drawn), _notes(subject, certain=certain), certain)


def _notes(subject: Subject, *, certain: bool) -> tuple[str, ...]:
    """What makes the verdicts less than certain."""
    notes = []
    if enlarged := subject.enlarged:
        notes.append(
            f"{len(enlarged)} weights ({enlarged[0]}, …) are initialised too small for anything to "
            "be measured (below 1e-5); they were made larger, so effects and cosines are those of "
            "larger weights."
        )
    if not certain:
        notes.append(
            "It cannot be told for certain: values in this model are so small, with these weights "
            "and inputs, that the eps of a norm (or another small constant) decides its output. "
            "Probe trained weights (--pretrained), or inputs of their usual size."
        )
    return tuple(notes)


def _groups(grouping: Grouping | None) -> dict[str, Any]:
    """A grouping as the fields of a report that say it."""
    if grouping is None:
        return {"groups": None}
    if grouping.folding != ROWS:
        return {"groups": None, "stack": grouping.folding}
    if grouping.groups is None:
        return {"groups": None, "sizes": grouping.sizes}
    return {"groups": grouping.groups}


def _views(subject: Subject, names: Sequence[str], gradient: Gradients, delta: float) -> list[int]:
    """What AdamP's own test says of each weight on this gradient."""
    with torch.device("cpu"):
        dot, grad_sq, weight_sq = (
            torch.cat([of[name, ROWS].cpu() for name in names])
            for of in (*gradient, subject.squares)
        )
        steps = torch.zeros_like(dot)
        layout = Layout.build(
            [Extent.of(subject.copies[name].shape) for name in names],
            [delta] * len(names),
            [_EPS] * len(names),
            dtype=dot.dtype,
            device=dot.device,
        )
        stats = torch.stack([dot, grad_sq, weight_sq, steps, steps])
        return choose_views(total(stats, layout), layout).codes.tolist()


def _cosine(
    subject: Subject, name: str, finding: Finding, gradients: Sequence[Gradients]
) -> float | None:
    if finding.effect == 0:
        return None
    grouping = finding.grouping or Grouping.equal(1, len(subject.squares[name, ROWS]))
    screen = Screen(subject, [name], gradients, grouping.folding)
    return screen.largest_cosine(grouping)


def _with_bias(
    subject: Subject,
    name: str,
    finding: Finding,
    readings: Sequence[Gradients],
    precise: list[Tensor],
    plain: list[Tensor],
    generator: torch.Generator,
) -> int | None:
    """The groups of weight and bias together, where they are finer than the weight's own."""
    holder, _, tensor = name.rpartition(".")
    bias = f"{holder}.bias".lstrip(".")
    rows = subject.copies[name].shape[0]
    if tensor != "weight" or bias not in subject.copies or finding.effect == 0:
        return None
    is_finest = finding.grouping is not None and finding.grouping.count >= rows
    if is_finest or subject.copies[bias].shape != (rows,):
        return None
    groups = find(subject, [name, bias], readings, precise, plain, generator).groups
    return groups if groups is not None and groups > (finding.groups or 0) else None
