"""Compare finished runs of `train.py`: a table a task on the console, and the pictures.

    python -m recipes.audio_classification.compare runs/audio_demo

reads every folder TASK-OPTIMIZER-SEED in the one given, and writes the pictures beside them.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from hf_adamp.diagnostics.plots import plot_runs, read_run
from recipes.common.tables import format_cell, format_table

from .pictures import plot_confusions, plot_curves, plot_filters

# Title, key and decimals; shares are shown in percent.
METRICS = {
    "keyword_spotting": [("accuracy %", "test_accuracy", 1)],
    "sound_event_tagging": [("instance F1 %", "test_f1", 2)],
    "music_tagging": [("ROC-AUC %", "test_roc_auc", 2), ("PR-AUC %", "test_pr_auc", 2)],
}
NAMES = {"adamp": "AdamP", "adamw_torch": "AdamW", "sgdp": "SGDP", "adam_then_sgd": "Adam, SGD"}

Runs = dict[str, list[Path]]


def find_runs(root: Path) -> dict[str, Runs]:
    """Return the folders of each task and optimizer that have a result."""
    found: dict[str, Runs] = defaultdict(lambda: defaultdict(list))
    for results in sorted(root.glob("*-*-*/test_results.json")):
        task, optimizer, _ = results.parent.name.split("-")
        found[task][NAMES.get(optimizer, optimizer)].append(results.parent)
    return found


def read_results(run: Path) -> dict[str, float]:
    """Return what a run ended with, and the first, last and mean of what it logged."""
    results = json.loads((run / "all_results.json").read_text())
    rows = read_run(run / "projection.jsonl")
    results["first_norm"], results["last_norm"] = rows[0]["weight_norm"], rows[-1]["weight_norm"]
    # The last step's would only show that the learning rate has come down to zero.
    results["effective_step"] = statistics.fmean(row["effective_step"] for row in rows)
    return results


def tabulate(task: str, runs: Runs) -> str:
    """Return the task's table, one row an optimizer."""
    metrics = METRICS[task]
    titles = ["optimizer", "seeds", *(f"test {title}" for title, _, _ in metrics)]
    titles += ["validation loss", "weight norm", "effective step", "seconds"]
    rows = []
    for optimizer, folders in runs.items():
        results = [read_results(folder) for folder in folders]
        column = {key: [result[key] for result in results] for key in results[0]}
        first = statistics.fmean(column["first_norm"])
        row = [optimizer, str(len(folders))]
        row += [format_cell([100 * v for v in column[key]], places) for _, key, places in metrics]
        row += [
            format_cell(column["validation_loss"], 3),
            f"{first:.2f} → {format_cell(column['last_norm'], 2)}",
            format_cell(column["effective_step"], 4),
            format_cell(column["train_runtime"], 0),
        ]
        rows.append(row)
    return format_table(titles, rows)


def draw(root: Path, task: str, runs: Runs) -> list[Path]:
    """Write the task's pictures."""
    title = task.replace("_", " ").capitalize()
    logs = {name: [run / "projection.jsonl" for run in folders] for name, folders in runs.items()}
    drawn = [plot_runs(logs, root / f"{task}-training.png", title=title)]
    predictions = {
        name: [np.load(run / "test_predictions.npz") for run in folders]
        for name, folders in runs.items()
    }
    if task == "keyword_spotting":
        drawn.append(plot_confusions(predictions, root / f"{task}-confusion.png"))
    else:
        drawn.append(plot_curves(predictions, root / f"{task}-curves.png", title))
    drawn.append(plot_filters(runs, root / f"{task}-filters.png"))
    return drawn


def main() -> None:
    """Print the tables, and draw."""
    root = Path(sys.argv[1])
    found = find_runs(root)
    if not found:
        sys.exit(
            f"{root} holds no finished run; run recipes/audio_classification/launch/demo.sh first."
        )
    for task, runs in found.items():
        print(f"\n{task.replace('_', ' ')}\n\n{tabulate(task, runs)}")
    for task, runs in found.items():
        for picture in draw(root, task, runs):
            print(f"picture: {picture}")


if __name__ == "__main__":
    main()
