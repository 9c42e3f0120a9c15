"""Compare finished runs of `demo.py`: tables on the console, and a picture.

    python -m recipes.rebias.compare runs/rebias_demo

reads results.jsonl and the histories of the folder, and writes comparison.png beside them.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_adamp.diagnostics.plots import COLOURS, load_matplotlib
from recipes.common.arms import ARMS
from recipes.common.paired import PairedRow, paired_table
from recipes.common.results import Result, ResultsFile
from recipes.common.tables import format_cell, format_table
from recipes.common.two_stages import final_runs, search_table

from .demo import CHOSEN_BY, DEMO_ARMS, RATES, RHOS, folder

LAST, BEST = "test_unbiased", "best_epoch_test_unbiased"
GROWTH = ("f_growth", "g_growth")


def measures_table(results: Sequence[Result], rho: float) -> str:
    """Return the table of a ρ: a line an arm."""
    titles = [f"ρ = {rho}", "rate", "unbiased %, last epoch", "best epoch on the test set"]
    titles += ["biased %", "f's filters, growth", "g's"]
    rows = []
    for arm in DEMO_ARMS:
        runs = final_runs(results, arm, rho=rho)
        column = {key: [run.measures[key] for run in runs] for key in runs[0].measures}
        cells = [format_cell([100 * v for v in column[key]], 1) for key in (LAST, BEST)]
        cells.append(format_cell([100 * v for v in column["test_biased"]], 1))
        cells += [f"×{format_cell(column[key], 2)}" for key in GROWTH]
        rows.append([ARMS[arm], f"{runs[0].setting['lr']:g}", *cells])
    return format_table(titles, rows)


def differences(results: Sequence[Result]) -> str:
    """Return AdamP's differences to both baselines, seed by seed."""
    tables = []
    for baseline in DEMO_ARMS[:-1]:
        rows = [
            PairedRow(
                f"ρ = {rho}",
                final_runs(results, baseline, rho=rho),
                final_runs(results, DEMO_ARMS[-1], rho=rho),
            )
            for rho in RHOS
        ]
        tables.append(paired_table(rows, LAST, title="unbiased %", decimals=1, scale=100))
    return "\n\n".join(tables)


def draw(root: Path, results: Sequence[Result]) -> Path:
    """Draw unbiased accuracy and dependence over the epochs: the seeds' median and band."""
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(4.4 * len(RHOS), 6.4), dpi=150, layout="constrained")
    canvas_class(figure)
    panels = figure.subplots(2, len(RHOS), squeeze=False, sharex=True)
    for rho, (upper, lower) in zip(RHOS, panels.T, strict=True):
        for number, arm in enumerate(DEMO_ARMS):
            seeds = [read_history(root, run) for run in final_runs(results, arm, rho=rho)]
            draw_band(upper, [[100 * epoch[LAST] for epoch in seed] for seed in seeds], number)
            draw_band(lower, [[epoch["hsic"] for epoch in seed] for seed in seeds], number)
        upper.set(title=f"ρ = {rho}", ylabel="unbiased test accuracy, %")
        lower.set(xlabel="epoch", ylabel="HSIC of f and g, training")
    panels[0][0].legend(frameon=False)
    output = root / "comparison.png"
    figure.savefig(output)
    return output


def read_history(root: Path, run: Result) -> list[dict[str, float]]:
    """Return a run's measures, epoch by epoch."""
    path = folder(root, run) / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_band(axis: Any, seeds: Sequence[Sequence[float]], number: int) -> None:
    """Draw an arm: the median of its seeds over the epochs, from the least to the greatest."""
    by_epoch = list(zip(*seeds, strict=True))
    epochs = range(1, len(by_epoch) + 1)
    colour = COLOURS[number]
    median = [statistics.median(values) for values in by_epoch]
    axis.plot(epochs, median, color=colour, label=ARMS[DEMO_ARMS[number]])
    band = ([pick(values) for values in by_epoch] for pick in (min, max))
    axis.fill_between(epochs, *band, color=colour, alpha=0.18, linewidth=0)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Print the tables, and draw."""
    root = Path(sys.argv[1])
    results = ResultsFile(root / "results.jsonl").read()
    if not any(result.setting["stage"] == "final" for result in results):
        sys.exit(f"{root} holds no finished run; run recipes/rebias/launch/demo.sh first.")
    searched = search_table(results, DEMO_ARMS, RATES, CHOSEN_BY, "validation, unbiased %")
    print(f"\n{searched}")
    for rho in RHOS:
        print(f"\n{measures_table(results, rho)}")
    print(f"\n{differences(results)}")
    print(f"\npicture: {draw(root, results)}")


if __name__ == "__main__":
    main()
