"""Compare finished runs of `demo.py`: tables on the console, and a picture.

    python -m recipes.image_retrieval.compare runs/retrieval_demo

reads results.jsonl and the logs of the folder, and writes training.png beside them.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_adamp.diagnostics.plots import plot_runs
from recipes.common.arms import ARMS
from recipes.common.paired import PairedRow, paired_table, select
from recipes.common.results import Result, ResultsFile
from recipes.common.tables import format_cell, format_table
from recipes.common.two_stages import final_runs, search_table

from .demo import CHOSEN_BY, DEMO_ARMS, EQUAL_RATE, KINDS, RATES, VARIANTS, folder

KS = (1, 2, 4, 8)
BEST = "best_epoch_on_test_recall_at_1"
# The two that differ most; four lines can be told apart.
DRAWN = {"scratch": "live", "frozen": "frozen"}


def differences(results: Sequence[Result], measure: str, title: str) -> str:
    """Return a measure of both arms, and the difference seed by seed: a line a variant.

    The last line is of untrained networks with an equal rate.
    """
    rows = [
        PairedRow(name, *(final_runs(results, arm, variant=variant) for arm in DEMO_ARMS))
        for variant, name in VARIANTS.items()
    ]
    equal = {"stage": "equal"}
    rows.append(
        PairedRow(
            f"{VARIANTS['scratch']}, both at {EQUAL_RATE:g}",
            *(select(results, arm, equal) for arm in DEMO_ARMS),
        )
    )
    return paired_table(rows, measure, title=title, scale=100)


def training_table(results: Sequence[Result]) -> str:
    """Return what training did to filters and proxies: a line an arm and variant."""
    rows = []
    for variant, name in VARIANTS.items():
        for arm in DEMO_ARMS:
            runs = final_runs(results, arm, variant=variant)
            column = {key: [run.measures[key] for run in runs] for key in runs[0].measures}
            row = [name, ARMS[arm], f"{runs[0].setting['lr']:g}"]
            for kind in KINDS:
                row.append(f"×{format_cell(column[f'{kind}_growth'], 2)}")
                shares = column[f"{kind}_projected"]
                row.append(f"{statistics.fmean(shares):.0%}" if arm == "adamp" else "–")
            row.append(f"{statistics.fmean(column['train_runtime']):.0f}")
            rows.append(row)
    titles = ["", "", "rate"]
    for kind in KINDS:
        titles += [f"{kind}: growth", "projected"]
    return format_table([*titles, "seconds"], rows)


def main() -> None:
    """Print the tables, and draw."""
    root = Path(sys.argv[1])
    results = ResultsFile(root / "results.jsonl").read()
    if not any(result.setting["stage"] == "final" for result in results):
        sys.exit(f"{root} holds no finished run; run recipes/image_retrieval/launch/demo.sh first.")
    for variant, name in VARIANTS.items():
        print(f"\n{search_table(results, DEMO_ARMS, RATES, CHOSEN_BY, name, variant=variant)}")
    for k in KS:
        print(f"\n{differences(results, f'test_recall_at_{k}', f'Recall@{k}, %, last epoch')}")
    print(f"\n{differences(results, BEST, 'Recall@1, %, best epoch on test')}")
    print(f"\n{training_table(results)}")
    logs = {
        f"{ARMS[arm]}, {short}": [
            folder(root, run) / "projection.jsonl"
            for run in final_runs(results, arm, variant=variant)
        ]
        for variant, short in DRAWN.items()
        for arm in DEMO_ARMS
    }
    title = "Proxy-Anchor on icons: filters, BatchNorm live (untrained) and frozen (pretrained)"
    picture = plot_runs(logs, root / "training.png", title=title, weights=KINDS["filters"])
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
