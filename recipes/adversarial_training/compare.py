"""Compare the runs of `demo.py`: tables on the console, and pictures.

python -m recipes.adversarial_training.compare runs/adversarial_demo
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_adamp.diagnostics.plots import COLOURS, load_matplotlib, plot_runs
from recipes.common.arms import ARMS
from recipes.common.paired import Difference, paired_difference, select
from recipes.common.results import Result, ResultsFile
from recipes.common.small_convnet import CONVOLUTIONS
from recipes.common.tables import format_cell, format_table

from .demo import folder_of

MEASURES = {
    "test_clean_accuracy": "clean %",
    "test_attacked_accuracy": "PGD-10 %",
    "strong_accuracy": "strong attacks %",
}
PAIRS = (("adamw_torch", "adamp"), ("adam_l2", "adamp"), ("sgd", "sgdp"))
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}


def by_arm(results: Sequence[Result], norm: str) -> dict[str, list[Result]]:
    """Return the runs of each arm that was attacked in a norm."""
    found = {arm: select(results, arm, {"norm": norm}) for arm in ARMS}
    return {arm: runs for arm, runs in found.items() if runs}


def tabulate(runs: Mapping[str, Sequence[Result]]) -> str:
    """Return the table of accuracies and norms, one row an arm."""
    titles = ["optimizer", "rate", "decay", "seeds", *MEASURES.values()]
    titles += ["filters' norm, last/first", "effective step", "projected"]
    rows = []
    for arm, seeds in runs.items():
        column = {key: [run.measures[key] for run in seeds] for key in seeds[0].measures}
        row = [ARMS[arm], *(f"{seeds[0].setting[k]:g}" for k in ("lr", "weight_decay"))]
        row.append(str(len(seeds)))
        row += [format_cell([100 * value for value in column[key]], 1) for key in MEASURES]
        row += [format_cell(column["growth"], 2), format_cell(column["effective_step"], 4)]
        row.append(format_cell(column["projected"], 2) if any(column["projected"]) else "")
        rows.append(row)
    return format_table(titles, rows)


def tabulate_differences(runs: Mapping[str, Sequence[Result]]) -> str:
    """Return the differences seed by seed, in points, with their standard errors."""
    rows = []
    for baseline, contender in PAIRS:
        if {baseline, contender} <= runs.keys():
            found = [paired_difference(runs[baseline], runs[contender], key) for key in MEASURES]
            cells = [Difference(100 * d.mean, 100 * d.standard_error, d.seeds) for d in found]
            title = f"{ARMS[contender]} − {ARMS[baseline]}"
            rows.append([title, str(found[0].seeds), *(cell.format(1) for cell in cells)])
    return format_table(["difference ± standard error", "seeds", *MEASURES.values()], rows)


def draw(runs: Mapping[str, Sequence[Result]], output: Path, title: str) -> Path:
    """Draw every seed's accuracies and their mean, a panel a measure."""
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(3.4 * len(MEASURES), 3.4), dpi=150, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(1, len(MEASURES))
    for axis, (key, name) in zip(axes, MEASURES.items(), strict=True):
        for number, (seeds, colour) in enumerate(zip(runs.values(), COLOURS, strict=False)):
            values = [100 * run.measures[key] for run in seeds]
            axis.plot([number] * len(values), values, "o", color=colour, alpha=0.6, markersize=5)
            mean = sum(values) / len(values)
            axis.plot([number - 0.3, number + 0.3], [mean] * 2, color=colour, linewidth=2)
        axis.set_xticks(range(len(runs)), [ARMS[arm] for arm in runs], rotation=30)
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.25, linewidth=0.6, axis="y")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(output)
    return output


def main() -> None:
    """Print the tables and draw the pictures of each norm."""
    root = Path(sys.argv[1])
    results = ResultsFile(root / "results.jsonl").read()
    if not results:
        sys.exit(f"{root} holds no finished run; run launch/demo.sh first.")
    for norm, name in NORMS.items():
        runs = by_arm(results, norm)
        if not runs:
            continue
        print(f"\nTrained and attacked in {name}\n\n{tabulate(runs)}")
        print(f"\n{tabulate_differences(runs)}")
        picture = draw(runs, root / f"{norm}-accuracy.png", f"Silhouettes, attacked in {name}")
        print(f"\npicture: {picture}")
        logs = {
            ARMS[arm]: [folder_of(root, run) / "projection.jsonl" for run in seeds]
            for arm, seeds in runs.items()
        }
        training = root / f"{norm}-training.png"
        title = f"Adversarial training in {name}: the filters"
        print(f"picture: {plot_runs(logs, training, title=title, weights=CONVOLUTIONS)}")


if __name__ == "__main__":
    main()
