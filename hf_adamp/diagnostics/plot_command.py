"""`python -m hf_adamp plot`: the picture of several runs, from what they left behind."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_adamp.diagnostics.plots import plot_runs

__all__ = ["main"]

_GENERAL = ("projection", "trainer_state", "log")  # names of files that say nothing of the run


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, draw, and print where the picture is.

    Args:
        argv: the arguments behind `plot`.

    Raises:
        SystemExit: with status 2 where a run cannot be read, and a line that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hf_adamp plot",
        description="Draw loss, weight norm, effective step and projected share of several runs.",
        epilog="Runs of one LABEL are seeds: their median is drawn, and how far they reach.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="a run's output folder, its ProjectionLog file, trainer_state.json, or event file",
    )
    parser.add_argument(
        "--weights", metavar="REGEX", help="only weights (or kinds) in whose names this is found"
    )
    parser.add_argument("--title", help="a headline above the panels")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs.png"),
        help="the picture; its ending chooses the format (%(default)s)",
    )
    options = parser.parse_args(argv)
    try:
        picture = plot_runs(
            _label(options.runs), options.output, title=options.title, weights=options.weights
        )
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print(picture)


def _label(runs: Sequence[str]) -> dict[str, list[str]]:
    """Give each run the label before its `=`, or its own name, or its path where two are alike."""
    bare = [run for run in runs if "=" not in run or Path(run).exists()]
    names = [_name(run) for run in bare]
    labelled: dict[str, list[str]] = {}
    for run in runs:
        if run in bare:
            label, path = (run if names.count(_name(run)) > 1 else _name(run)), run
        else:
            label, _, path = run.partition("=")
        labelled.setdefault(label, []).append(path)
    return labelled


def _name(run: str) -> str:
    path = Path(run).resolve()
    return path.parent.name if path.suffix and path.stem in _GENERAL else path.stem
