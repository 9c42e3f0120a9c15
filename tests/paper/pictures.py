"""The pictures of docs/paper.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from hf_adamp.diagnostics.plots import COLOURS
from tests.paper.growth import Trace

__all__ = ["draw_digits", "draw_plane", "draw_ratios"]

_STYLES = ("-", "--", "-.")
# Without momentum, with it, and projected: each has a colour in all pictures.
_LOOKS = ("SGD", "SGD + momentum", "SGDP", "", "Adam", "AdamP")
_WIDTH = 15  # steps of a moving average, which shows the course of what jumps from batch to batch


def draw_plane(traces: Mapping[str, Trace], output: Path, shown: int = 60) -> None:
    """The path in the plane, the loss, the norm and the effective step."""
    figure, axes = _figure(2, 2)
    for index, (name, trace) in enumerate(traces.items()):
        look = {"color": COLOURS[index], "linestyle": _STYLES[index], "linewidth": 1.8}
        path = trace.first[: shown + 1]
        axes[0, 0].plot(*path.T, marker=".", markersize=4, label=name, **look)
        axes[0, 1].plot(trace.losses[:shown], **look)
        axes[1, 0].plot(trace.squares.sum(1).sqrt()[: shown + 1], **look)
        axes[1, 1].plot(range(1, shown + 1), trace.turns[:shown], **look)
    around = np.linspace(0, 2 * np.pi)
    axes[0, 0].plot(np.cos(around), np.sin(around), color="0.7", linewidth=0.8, zorder=0)
    axes[0, 0].plot(*path[0], "o", color="black", markersize=5)
    axes[0, 0].annotate("start", path[0], xytext=(7, -5), textcoords="offset points")
    axes[0, 0].axhline(0, color="0.5", linewidth=0.8, zorder=0)
    axes[0, 0].annotate("w₂ = 0: minimum", (5.9, -0.05), va="top", ha="right", color="0.35")
    axes[0, 0].set(xlabel="w₁", ylabel="w₂", title="Path of w, a dot a step")
    axes[0, 0].set_aspect("equal", adjustable="datalim")
    _label(axes[0, 1], "Loss, 1 − cos(w, w*)", "loss (no unit)", "log")
    _label(axes[1, 0], "Norm", "‖w‖ (starts at 1)", "linear")
    _label(axes[1, 1], "Effective step", "‖ŵₜ₊₁ − ŵₜ‖ (≈ radians a step)", "log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    _save(figure, output)


def draw_digits(runs: Mapping[str, Sequence[Trace]], families: Sequence, output: Path) -> None:
    """Norm, effective step and loss over the steps: a row of panels a family of optimizers."""
    figure, axes = _figure(len(families), 3)
    for row, names in zip(axes, families, strict=True):
        for name in names:
            index = _LOOKS.index(name) % 3
            traces = runs[name]
            norms = [(t.squares.sum(1) / t.squares[0].sum()).sqrt() for t in traces]
            _band(row[0], norms, index, name)
            _band(row[1], [t.turns for t in traces], index, name, width=_WIDTH)
            _band(row[2], [t.losses for t in traces], index, name, width=_WIDTH)
        _label(row[0], "Norm", "‖w‖ / ‖w₀‖ of all weights", "linear")
        _label(row[1], f"Effective step, mean of {_WIDTH}", "‖ŵₜ₊₁ − ŵₜ‖ a row (≈ radians)", "log")
        _label(row[2], f"Training loss, mean of {_WIDTH}", "cross-entropy (nats)", "linear")
        row[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        row[1].yaxis.set_major_formatter("{x:g}")
        row[1].minorticks_off()
        row[0].legend(frameon=False)
    _save(figure, output)


def draw_ratios(limits: Mapping[float, float], measured: Mapping, output: Path) -> None:
    """How far the squared norm grew at convergence, by the momentum that was used."""
    figure, axes = _figure(1, 1)
    axis = axes[0, 0]
    axis.plot(*zip(*limits.items(), strict=True), color="0.6", label="1 + 2β / (1 − β)")
    for (name, ratios), marker, colour in zip(measured.items(), "os", COLOURS[1:], strict=False):
        points = zip(*ratios.items(), strict=True)
        axis.plot(*points, marker, color=colour, label=name, fillstyle="none", markeredgewidth=1.8)
    _label(axis, "Growth of ‖w‖² over Σ η²‖pₜ‖²", "ratio (no unit)", "log")
    axis.set(xlabel="momentum β", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
    axis.minorticks_off()
    axis.legend(frameon=False)
    _save(figure, output)


def _figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(axis: Axes, title: str, unit: str, scale: str) -> None:
    axis.set_title(title, fontsize=11)
    axis.set(xlabel="optimizer step", ylabel=unit, yscale=scale)


def _band(axis: Axes, seeds: Sequence[Tensor], index: int, name: str, width: int = 1) -> None:
    """The median of the seeds, and how far they reach, of a centred moving average."""
    table = torch.stack(list(seeds))
    width = min(width, table.shape[1])
    table = table.unfold(1, width, 1).mean(2)
    steps = [step + (width - 1) / 2 for step in range(table.shape[1])]
    look = {"color": COLOURS[index], "linewidth": 1.8, "label": name}
    axis.plot(steps, table.median(0).values, _STYLES[index], **look)
    lowest, highest = table.min(0).values, table.max(0).values
    axis.fill_between(steps, lowest, highest, color=COLOURS[index], alpha=0.18, linewidth=0)


def _save(figure: Figure, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
