"""Pictures of `ProjectionLog`'s files: runs beside each other, one panel a quantity."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "load_matplotlib", "plot_runs", "read_run"]


class _Panel(NamedTuple):
    key: str
    title: str
    unit: str
    scale: str


_PANELS = (
    _Panel("loss", "Training loss", "cross-entropy (nats)", "log"),
    _Panel("weight_norm", "Weight norm", "‖w‖ of all weights, 2-D and up", "linear"),
    _Panel("effective_step", "Effective step", "‖Δw‖ / ‖w‖ per optimizer step", "log"),
)
# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":")


def read_run(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a `ProjectionLog` file that speak of the whole model, in order.

    Args:
        path: the file that `ProjectionLog(jsonl=…)` wrote.

    Raises:
        ValueError: the file has no such line.
    """
    with Path(path).open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["weight"] is None]
    if not rows:
        raise ValueError(
            f"{path} holds no line for the whole model; train with ProjectionLog(jsonl=...) for "
            "at least logging_steps steps first."
        )
    return rows


def plot_runs(
    runs: Mapping[str, str | Path | Sequence[str | Path]],
    output: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """Draw loss, weight norm and effective step of several runs over their steps.

    Several files under one label are runs that differ by seed: the line is their median, and a
    band reaches from the least to the greatest.

    Args:
        runs: a label for each run, and its `ProjectionLog` file or files.
        output: the picture to write; its ending chooses the format (`.png`, `.pdf`, `.svg`).
        title: a headline above the panels. Default: none.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no run, or a file holds no line for the whole model.
        ModuleNotFoundError: matplotlib is not installed.

    Example:
        ```python
        plot_runs({"AdamP": "adamp.jsonl", "AdamW": "adamw.jsonl"}, "runs.png")
        ```
    """
    if not runs:
        raise ValueError("runs={} holds no run; give at least one label and its file.")
    series = {
        label: [read_run(f) for f in ([files] if isinstance(files, str | Path) else files)]
        for label, files in runs.items()
    }
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(4.2 * len(_PANELS), 3.6), dpi=150, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(1, len(_PANELS))
    for axis, panel in zip(axes, _PANELS, strict=True):
        for index, (label, seeds) in enumerate(series.items()):
            _draw(axis, panel.key, label, seeds, index)
        axis.set_title(panel.title, fontsize=11)
        axis.set(xlabel="optimizer step", ylabel=panel.unit, yscale=panel.scale)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _draw(axis: Axes, key: str, label: str, seeds: list[list[dict[str, Any]]], index: int) -> None:
    """Draw one quantity of one label: the median of its seeds, and their band."""
    by_step: dict[int, list[float]] = {}
    for row in (row for seed in seeds for row in seed):
        # A quantity is null, or absent, where it was not finite: leave a gap.
        value = row.get(key)
        by_step.setdefault(row["step"], []).append(math.nan if value is None else value)
    steps = sorted(by_step)
    colour = COLOURS[index % len(COLOURS)]
    middle = [statistics.median(by_step[step]) for step in steps]
    name = label if len(seeds) == 1 else f"{label} ({len(seeds)} seeds)"
    style = _LINES[index % len(_LINES)]
    axis.plot(steps, middle, style, color=colour, linewidth=1.8, label=name)
    if len(seeds) > 1:
        lowest, highest = ([pick(by_step[s]) for s in steps] for pick in (min, max))
        axis.fill_between(steps, lowest, highest, color=colour, alpha=0.18, linewidth=0)


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
