"""Pictures of what `ProjectionLog` logged: runs beside each other, one panel a quantity."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_adamp.diagnostics.runs import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "load_matplotlib", "plot_runs", "read_run"]


_Series = dict[str, list[list[dict[str, Any]]]]


class _Panel(NamedTuple):
    key: str
    title: str
    unit: str
    scale: str


_PANELS = (
    _Panel("loss", "Training loss", "loss as logged", "log"),
    _Panel("weight_norm", "Weight norm", "‖w‖ of {weights}", "linear"),
    _Panel("effective_step", "Effective step", "‖Δw‖ / ‖w‖ an optimizer step", "log"),
    _Panel("projected", "Projected", "share of weights and steps", "linear"),
)
# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":")


def plot_runs(
    runs: Mapping[str, str | Path | Sequence[str | Path]],
    output: str | Path,
    *,
    title: str | None = None,
    weights: str | None = None,
) -> Path:
    """Draw loss, weight norm, effective step and projected share of several runs over their steps.

    Several files under one label are runs that differ by seed: the line is their median, and a
    band reaches from the least to the greatest. A panel of which no run knows anything is left out.

    Args:
        runs: a label for each run, and where it is, or where several are; see `read_run`.
        output: the picture to write; its ending chooses the format (`.png`, `.pdf`, `.svg`).
        title: a headline above the panels. Default: none.
        weights: a regular expression that chooses weights by name; see `read_run`. The loss
            remains that of the whole model. Default: all weights with two dimensions or more.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no run, one holds no line for the whole model, or none of the weights.
        FileNotFoundError: a run is not there.
        ModuleNotFoundError: matplotlib is not installed, or a run needs TensorBoard.

    Example::

        plot_runs({"AdamP": "runs/adamp", "AdamW": "runs/adamw"}, "runs.png", weights="conv")
    """
    if not runs:
        raise ValueError("runs={} holds no run; give at least one label and its file.")
    series = {
        label: [
            _with_share(read_run(file, weights))
            for file in ([files] if isinstance(files, str | Path) else files)
        ]
        for label, files in runs.items()
    }
    figure_class, canvas_class = load_matplotlib()
    known = {key for seeds in series.values() for seed in seeds for row in seed for key in row}
    panels = [panel for panel in _PANELS if panel.key in known]
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    figure = figure_class(figsize=(4.2 * columns, 3.6 * rows), dpi=150, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, series, panel.unit.format(weights=_in_words(weights)))
    axes[0].legend(frameon=False)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _with_share(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up the views, so that one line tells how often a run's weights are projected."""
    for row in rows:
        shares = [value for key, value in row.items() if key.startswith("projected_")]
        if shares:
            row["projected"] = math.fsum(shares)
    return rows


def _in_words(weights: str | None) -> str:
    """Which weights are drawn, for a label."""
    if weights is None:
        return "all weights, 2-D and up"
    # A part of a name says it; a regular expression on an axis says nothing to most readers.
    is_name = re.fullmatch(r"[\w.]+", weights) is not None
    return f"weights with “{weights}”" if is_name else "the chosen weights"


def _draw_panel(axis: Axes, panel: _Panel, series: _Series, unit: str) -> None:
    lowest = min(
        _draw(axis, panel.key, label, seeds, index)
        for index, (label, seeds) in enumerate(series.items())
    )
    axis.set_title(panel.title, fontsize=11)
    # Losses may be negative, and a step of length 0 has no place on a logarithmic axis.
    scale = panel.scale if lowest > 0 else "linear"
    axis.set(xlabel="optimizer step", ylabel=unit, yscale=scale)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.key == "projected":
        axis.set_ylim(-0.03, 1.03)


def _draw(axis: Axes, key: str, label: str, seeds: list[list[dict[str, Any]]], index: int) -> float:
    """Draw one quantity of one label, the median of its seeds and their band; return the least."""
    by_step: dict[int, list[float]] = {}
    for row in (row for seed in seeds for row in seed):
        # A quantity is absent where it was not finite: leave a gap.
        by_step.setdefault(row["step"], []).append(row.get(key, math.nan))
    steps = sorted(by_step)
    colour = COLOURS[index % len(COLOURS)]
    middle = [statistics.median(by_step[step]) for step in steps]
    name = label if len(seeds) == 1 else f"{label} ({len(seeds)} seeds)"
    style = _LINES[index % len(_LINES)]
    axis.plot(steps, middle, style, color=colour, linewidth=1.8, label=name)
    if len(seeds) > 1:
        lowest, highest = ([pick(by_step[s]) for s in steps] for pick in (min, max))
        axis.fill_between(steps, lowest, highest, color=colour, alpha=0.18, linewidth=0)
    drawn = [value for values in by_step.values() for value in values if math.isfinite(value)]
    return min(drawn, default=math.inf)


def load_matplotlib() -> tuple[Any, Any]:
    """Return the classes Figure and FigureCanvasAgg, or say what to install."""
    try:
        # Not pyplot: it would choose a window system and keep every figure in memory.
        agg, figure = (import_module(f"matplotlib.{m}") for m in ("backends.backend_agg", "figure"))
    except ImportError as error:
        raise ModuleNotFoundError(
            "Plots need matplotlib, which is not installed: pip install hf-adamp[plots]"
        ) from error
    return figure.Figure, agg.FigureCanvasAgg
