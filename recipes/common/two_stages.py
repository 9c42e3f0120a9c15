"""A small run in two stages: first a learning rate for each arm, then all seeds with it.

    run_stages("...", search_jobs=search_jobs, final_jobs=final_jobs, measure=measure)

A job's setting has `lr` and `stage`, which is "search" or "final". The search measures on a
validation set, with seeds that the final runs do not use.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .arms import ARMS
from .paired import choose, select
from .results import Result, ResultsFile
from .tables import format_cell, format_table

__all__ = ["chosen_rate", "final_runs", "run_stages", "search_table"]


def chosen_rate(results: Sequence[Result], arm: str, measure: str, **setting: object) -> float:
    """Return the learning rate with the best mean of a measure among an arm's searched ones.

    `setting` leaves only some of them, where more than the rate differs.
    """
    rate: float = choose(results, arm, measure, among={"stage": "search", **setting})["lr"]
    return rate


def final_runs(results: Sequence[Result], arm: str, **setting: object) -> list[Result]:
    """Return an arm's reported runs, by seed; `setting` leaves only some of them."""
    return select(results, arm, {"stage": "final", **setting})


def search_table(
    results: Sequence[Result],
    arms: Sequence[str],
    rates: Sequence[float],
    measure: str,
    title: str,
    **setting: object,
) -> str:
    """Return a table of what the rates were chosen by, in percent, the best of each arm bold.

    `setting` leaves only some of the runs, where more than the rate differs.
    """
    rows = []
    for arm in arms:
        cells = []
        for rate in rates:
            runs = select(results, arm, {"stage": "search", "lr": rate, **setting})
            cell = format_cell([100 * run.measures[measure] for run in runs], 1)
            best = rate == chosen_rate(results, arm, measure, **setting)
            cells.append(f"**{cell}**" if best else cell)
        rows.append([ARMS[arm], *cells])
    return format_table([title, *(f"rate {rate:g}" for rate in rates)], rows)


def run_stages(
    description: str,
    *,
    search_jobs: Callable[[], Iterable[Result]],
    final_jobs: Callable[[Sequence[Result]], Iterable[Result]],
    measure: Callable[[Path, Result], Result],
) -> None:
    """Do what is left of the stage that the command line names; results go to results.jsonl.

    Args:
        description: of the program, for `--help`.
        search_jobs: returns the search's jobs.
        final_jobs: returns the final ones, given what the search came to.
        measure: does a job, given the root of all folders, and returns it with its measures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("root", type=Path, help="where results and the runs' folders are")
    parser.add_argument("--stage", choices=("search", "final"), required=True)
    parser.add_argument("--part", type=int, default=0, help="of the work, from 0")
    parser.add_argument("--of", type=int, default=1, help="how many processes share the work")
    args = parser.parse_args()
    file = ResultsFile(args.root / "results.jsonl")
    jobs = list(search_jobs() if args.stage == "search" else final_jobs(file.read()))
    mine = file.missing(jobs[args.part :: args.of])
    for number, job in enumerate(mine, 1):
        print(f"== {args.stage} {number} of {len(mine)}: {job.key}", flush=True)
        file.add(measure(args.root, job))
