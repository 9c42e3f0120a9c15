"""Weights in a picture: what is invariant, how exactly, and what AdamP's test sees of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_adamp.diagnostics.plots import COLOURS, load_matplotlib
from hf_adamp.diagnostics.probe.weights import Family, WeightReport, families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KINDS", "draw", "kind"]

# What is not invariant recedes.
KINDS = {
    "row": COLOURS[0],
    "head": COLOURS[2],
    "tensor": COLOURS[4],
    "not invariant": "#BBBBBB",
}
_FLOOR = 1e-17


def kind(granularity: Any) -> str:
    """The key into `KINDS`."""
    if granularity is None:
        return "not invariant"
    unit = granularity if isinstance(granularity, str) else str(granularity[0])
    # Groups of rows are heads of unequal size, and each output of an expert is a row.
    return {"rows": "head", "experts": "row"}.get(unit, unit)


def draw(weights: Iterable[WeightReport], title: str, gradients: int, output: Path) -> Path:
    """Draw weights into a file; see `ProbeReport.plot`."""
    figure_class, canvas_class = load_matplotlib()
    rows = [family for family in families(weights) if family.first.effect > 0]
    height = 1.6 + 0.27 * len(rows)
    figure = figure_class(figsize=(12, height), dpi=150, layout="constrained")
    canvas_class(figure)
    size, cosine, test = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    places = range(len(rows))
    colours = [KINDS[kind(family.first.granularity)] for family in rows]
    total = sum(family.numel for family in rows)
    size.barh(places, [100 * family.numel / total for family in rows], color=colours)
    size.set(xlabel="% of the weights' elements", title="Scale-invariant")
    size.set_yticks(places, [_label(family) for family in rows], fontsize=8)
    size.invert_yaxis()
    handles = [figure_patch(size, name, colour) for name, colour in KINDS.items()]
    size.legend(handles=handles, frameon=False, fontsize=8)
    for place, family, colour in zip(places, rows, colours, strict=True):
        values = [max(member.cosine or 0.0, _FLOOR) for member in family.members]
        cosine.plot(values, [place] * len(values), "o", color=colour, markersize=4)
    cosine.set(xscale="log", xlim=(_FLOOR, 1.5), xlabel="|g·w| / (|g||w|)", title="Exactness")
    _draw_test(test, rows, gradients)
    for axis in (size, cosine, test):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    figure.suptitle(title, fontsize=11, wrap=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def figure_patch(axis: Axes, name: str, colour: str) -> Any:
    """An entry of the legend, drawn where nothing is seen of it."""
    return axis.barh([0], [0], color=colour, label=name)


def _draw_test(axis: Axes, rows: list[Family], gradients: int) -> None:
    places = range(len(rows))
    channel = [100 * family.mean(lambda w: w.channel) for family in rows]
    layer = [100 * family.mean(lambda w: w.layer) for family in rows]
    axis.barh(places, channel, color=KINDS["row"], label="rows")
    axis.barh(places, layer, left=channel, color=KINDS["tensor"], label="tensor")
    axis.set(
        xlim=(0, 100),
        xlabel=f"% of {gradients} gradients",
        title="What AdamP's test projects",
    )
    axis.legend(frameon=False, fontsize=8)


def _label(family: Family) -> str:
    count = len(family.members)
    return family.pattern if count == 1 else f"{family.pattern} ×{count}"
