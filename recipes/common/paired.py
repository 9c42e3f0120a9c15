"""Compare arms seed by seed: which setting was best, and the difference with its standard error.

    best = {arm: choose(results, arm, "validation_accuracy") for arm in ("adamw_torch", "adamp")}
    runs = [select(results, arm, setting) for arm, setting in best.items()]
    print(paired_table([PairedRow("best setting", *runs)], "test_accuracy", title="accuracy"))

Runs with the same seed begin with the same weights and see the same batches, so a difference is
taken seed by seed. Its standard error is the differences' standard deviation over the root of their
number: what the seeds leave uncertain. That the test set is a sample is not in it.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .arms import ARMS
from .results import Result
from .tables import format_cell, format_table

__all__ = ["Difference", "PairedRow", "choose", "paired_difference", "paired_table", "select"]


class Difference(NamedTuple):
    """Mean over the seeds of contender minus baseline; `standard_error` is nan for one seed."""

    mean: float
    standard_error: float
    seeds: int

    def format(self, decimals: int) -> str:
        """Write it with its sign, as +0.84 ± 0.12."""
        text = f"{self.mean:+.{decimals}f}"
        if self.seeds > 1:
            text += f" ± {self.standard_error:.{decimals}f}"
        return text


class PairedRow(NamedTuple):
    """A line of a table: runs of the baseline and of the contender, in pairs of a seed."""

    title: str
    baseline: Sequence[Result]
    contender: Sequence[Result]


def select(results: Sequence[Result], arm: str, setting: Mapping[str, Any]) -> list[Result]:
    """Return the runs of an arm whose setting holds all of `setting`, by seed."""
    found = [r for r in results if r.arm == arm and setting.items() <= r.setting.items()]
    return sorted(found, key=lambda result: result.seed)


def choose(
    results: Sequence[Result],
    arm: str,
    measure: str,
    *,
    largest: bool = True,
    among: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the setting of an arm whose mean over seeds is best.

    Args:
        results: runs of any arms and settings.
        arm: whose setting is chosen.
        measure: by what; it should be of the validation set.
        largest: whether more is better. Default: True.
        among: only settings that hold all of this. Default: all of the arm's.

    Raises:
        ValueError: no run fits.
    """
    values: dict[str, list[float]] = {}
    for result in select(results, arm, among or {}):
        values.setdefault(json.dumps(dict(result.setting)), []).append(result.measures[measure])
    if not values:
        raise ValueError(f"no run of arm={arm!r} holds {dict(among or {})}.")
    # A run that diverged must not win.
    worst = -math.inf if largest else math.inf
    means = {
        key: worst if any(map(math.isnan, of)) else statistics.fmean(of)
        for key, of in values.items()
    }
    best = (max if largest else min)(means, key=means.__getitem__)
    setting: dict[str, Any] = json.loads(best)
    return setting


def paired_difference(
    baseline: Sequence[Result], contender: Sequence[Result], measure: str
) -> Difference:
    """Return the mean of contender minus baseline over the seeds that both have.

    Raises:
        ValueError: a seed is there twice on one side, or no seed is on both.
    """
    by_seed = []
    for side in (baseline, contender):
        values = {result.seed: result.measures[measure] for result in side}
        if len(values) != len(side):
            raise ValueError(f"a seed of {side[0].arm} occurs twice; select one setting.")
        by_seed.append(values)
    both = sorted(by_seed[0].keys() & by_seed[1].keys())
    if not both:
        raise ValueError("baseline and contender have no seed in common; run both with the same.")
    differences = [by_seed[1][seed] - by_seed[0][seed] for seed in both]
    error = math.nan
    if len(both) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(both))
    return Difference(statistics.fmean(differences), error, len(both))


def paired_table(
    rows: Sequence[PairedRow], measure: str, *, title: str, decimals: int = 2, scale: float = 1.0
) -> str:
    """Return a Markdown table: mean ± standard deviation of both, difference ± standard error.

    Args:
        rows: one a line; all with the same two arms.
        measure: which of the runs' measures.
        title: over the first column; say there what is measured and in what unit.
        decimals: of every number. Default: 2.
        scale: what numbers are multiplied by, such as 100 for percent. Default: 1.
    """
    arms = [ARMS[side[0].arm] for side in (rows[0].baseline, rows[0].contender)]
    lines = []
    for row in rows:
        cells = [
            format_cell([scale * result.measures[measure] for result in side], decimals)
            for side in (row.baseline, row.contender)
        ]
        mean, error, seeds = paired_difference(row.baseline, row.contender, measure)
        difference = Difference(scale * mean, scale * error, seeds).format(decimals)
        lines.append([row.title, *cells, difference, str(seeds)])
    return format_table([title, *arms, f"{arms[1]} − {arms[0]}, ± se", "seeds"], lines)
