"""Plots of what `ProjectionLog` logged: several runs, one panel per quantity."""

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
    _Panel("effective_step", "Effective step", "‖Δw‖ / ‖w‖ per optimizer step", "log"),
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
    """Plot loss, weight norm, effective step and projected share of several runs over the steps.

    Several files under one label are runs with different seeds: the line is their median, the band
    their range. A panel is left out if no run has its numbers.

    Args:
        runs: the path of each run by its label, or a list of paths; see `read_run`.
        output: the file to write; its extension selects the format (`.png`, `.pdf`, `.svg`).
        title: a title above the panels. Default: none.
        weights: a regular expression that selects weights by name; see `read_run`. The loss
            remains that of the whole model. Default: all weights with two dimensions or more.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no run, or a run has no line for the whole model or for the weights.
        FileNotFoundError: a run does not exist.
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
    """Add up the views, so that one line shows how often a run's weights are projected."""
    for row in rows:
        shares = [value for key, value in row.items() if key.startswith("projected_")]
        if shares:
            row["projected"] = math.fsum(shares)
    return rows


def _in_words(weights: str | None) -> str:
    """The selected weights, for a label."""
    if weights is None:
        return "all weights, 2-D and up"
    # Part of a name is readable on an axis; a regular expression is not.
    is_name = re.fullmatch(r"[\w.]+", weights) is not None
    return f"weights with “{weights}”" if is_name else "the chosen weights"


def _draw_panel(axis: Axes, panel: _Panel, series: _Series, unit: str) -> None:
    lowest = min(
        _draw(axis, panel.key, label, seeds, index)
        for index, (label, seeds) in enumerate(series.items())
    )
    axis.set_title(panel.title, fontsize=11)
    # A logarithmic axis has no place for negative losses or for steps of size 0.
    scale = panel.scale if lowest > 0 else "linear"
    axis.set(xlabel="optimizer step", ylabel=unit, yscale=scale)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.key == "projected":
        axis.set_ylim(-0.03, 1.03)


def _draw(axis: Axes, key: str, label: str, seeds: list[list[dict[str, Any]]], index: int) -> float:
    """Draw one quantity of one label, median and range of its seeds; return the smallest value."""
    by_step: dict[int, list[float]] = {}
    for row in (row for seed in seeds for row in seed):
        # Values that were not finite are missing: leave a gap.
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
