"""Compare finished runs of `train.py`: a table on the console, and a picture.

    python -m recipes.digits_resnet.compare runs/digits_resnet

reads every folder named OPTIMIZER-SEED in the one given, and writes comparison.png beside them.
"""

import json
import statistics
import sys
from pathlib import Path

from hf_adamp.diagnostics.plots import plot_runs, read_run

from ..common.tables import format_cell, format_table

# Column title, decimals, scale.
COLUMNS = {
    "validation_loss": ("validation loss", 4, 1),
    "test_accuracy": ("test accuracy %", 2, 100),
    "test_loss": ("test loss", 4, 1),
    "train_runtime": ("seconds", 1, 1),
    "weight_norm": ("weight norm", 2, 1),
    "effective_step": ("mean effective step", 5, 1),
}


def read_result(run: Path) -> dict[str, float]:
    """Return what one run ended with, and the mean of its effective steps."""
    results = {}
    for split in ("train", "validation", "test"):
        results |= json.loads((run / f"{split}_results.json").read_text())
    rows = read_run(run / "projection.jsonl")
    results["weight_norm"] = rows[-1]["weight_norm"]
    # The last step's would only show that the learning rate has come down to zero.
    results["effective_step"] = statistics.fmean(row["effective_step"] for row in rows)
    return results


def main() -> None:
    """Print a Markdown table, one line an optimizer, and draw its runs."""
    root = Path(sys.argv[1])
    runs: dict[str, list[Path]] = {}
    for results in sorted(root.glob("*-*/test_results.json")):
        runs.setdefault(results.parent.name.rpartition("-")[0], []).append(results.parent)
    if not runs:
        sys.exit(f"{root} holds no finished run; run recipes/digits_resnet/run.sh first.")

    titles = ["optimizer", "seeds", *(title for title, _, _ in COLUMNS.values())]
    rows = []
    for optimizer, folders in runs.items():
        results = [read_result(folder) for folder in folders]
        cells = [
            format_cell([scale * result[key] for result in results], decimals)
            for key, (_, decimals, scale) in COLUMNS.items()
        ]
        rows.append([optimizer, str(len(folders)), *cells])
    print(f"\n{format_table(titles, rows)}")

    files = {name: [run / "projection.jsonl" for run in folders] for name, folders in runs.items()}
    title = "A small ResNet on scikit-learn's digits"
    print(f"\nplot: {plot_runs(files, root / 'comparison.png', title=title)}")


if __name__ == "__main__":
    main()
