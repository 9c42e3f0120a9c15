"""Tables of results: runs that differ by seed in one cell, cells in Markdown."""

import statistics
from collections.abc import Sequence

__all__ = ["format_cell", "format_table"]


def format_cell(values: Sequence[float], decimals: int) -> str:
    """Write the mean of the seeds, and their standard deviation where there are several."""
    cell = f"{statistics.fmean(values):.{decimals}f}"
    if len(values) > 1:
        cell += f" ± {statistics.stdev(values):.{decimals}f}"
    return cell


def format_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up on a console, too."""
    lines = [list(titles), ["---"] * len(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
