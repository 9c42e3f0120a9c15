"""Every weight of a model in float64, one after the other: its grouping, and AdamP's test on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_adamp.diagnostics.probe.evaluation import Gradients, Subject
from hf_adamp.diagnostics.probe.scaling import Finding, Screen, confirm, find
from hf_adamp.optim.layout import Extent, Layout
from hf_adamp.optim.projection import View, choose_views, total

__all__ = ["examine"]

# Gradients that screen the groupings: random readings of the output.
_READINGS = 3
# AdamP's default, which keeps the norms of zero rows off zero in its test.
_EPS = 1e-8


def examine(
    subject: Subject,
    names: Sequence[str],
    gradients: int,
    delta: float,
    generator: torch.Generator,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return for each of `names` the fields of its `WeightReport`, and the number of gradients."""
    precise = subject.outputs(shrink_eps=True)
    plain = subject.outputs(shrink_eps=False)
    readings = subject.reading_gradients(_READINGS, shrink_eps=True)
    drawn = subject.loss_gradients(gradients)
    views: dict[str, list[int]] = {name: [] for name in names}
    for gradient in drawn:
        for name, view in zip(names, _views(subject, names, gradient, delta), strict=True):
            views[name].append(view)
    confirmed = confirm(subject, names, readings, precise, generator)
    found = {}
    for name in names:
        finding = find(subject, [name], readings, precise, plain, generator, confirmed=confirmed)
        found[name] = {
            "shape": tuple(subject.copies[name].shape),
            "groups": finding.groups,
            "change": finding.change,
            "effect": finding.effect,
            "cosine": _cosine(subject, name, finding, drawn),
            "channel": views[name].count(View.CHANNEL) / len(drawn),
            "layer": views[name].count(View.LAYER) / len(drawn),
            "with_bias": _with_bias(subject, name, finding, readings, precise, plain, generator),
            "partial": finding.partial,
        }
    return found, len(drawn)


def _views(subject: Subject, names: Sequence[str], gradient: Gradients, delta: float) -> list[int]:
    """What AdamP's own test says of each weight on this gradient."""
    with torch.device("cpu"):
        dot, grad_sq, weight_sq = (
            torch.cat([part[name].cpu() for name in names]) for part in (*gradient, subject.squares)
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
    screen = Screen(subject, [name], gradients)
    groups = finding.groups or 1
    alive, _ = screen.passing(groups)
    return float(screen.cosines(groups)[0][:, alive].max())


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
    if finding.groups == rows or subject.copies[bias].shape != (rows,):
        return None
    groups = find(subject, [name, bias], readings, precise, plain, generator).groups
    return groups if groups is not None and groups > (finding.groups or 0) else None
