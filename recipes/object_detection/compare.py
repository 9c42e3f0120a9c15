"""Compare finished runs of `demo.py`: tables on the console, and pictures.

    python -m recipes.object_detection.compare runs/detection_demo

reads results.jsonl, logs and models of the folder, and writes training.png and detections.png.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_adamp.diagnostics.plots import plot_runs
from recipes.common.arms import ARMS
from recipes.common.paired import PairedRow, paired_table
from recipes.common.results import Result, ResultsFile
from recipes.common.tables import format_cell, format_table
from recipes.common.two_stages import final_runs, search_table

from .demo import CHOSEN_BY, CONVOLUTIONS, DEMO_ARMS, RATES, folder
from .pictures import draw_detections

# Large objects do not occur in scenes of 96 pixels.
AP = {
    "test_ap": "AP",
    "test_ap50": "AP at 0.5",
    "test_ap75": "AP at 0.75",
    "test_ap_small": "AP, small",
    "test_ap_medium": "AP, medium",
}


def differences(results: Sequence[Result]) -> str:
    """Return AP of both arms, and the difference seed by seed: a line a measure."""
    tables = [
        paired_table(
            [PairedRow(title, *(final_runs(results, arm) for arm in DEMO_ARMS))],
            measure,
            title="test scenes, %",
            scale=100,
        )
        for measure, title in AP.items()
    ]
    # One table, of which every line is another measure.
    return "\n".join([*tables[0].splitlines(), *(table.splitlines()[-1] for table in tables[1:])])


def training_table(results: Sequence[Result]) -> str:
    """Return what training did to the convolutions."""
    rows = []
    for arm in DEMO_ARMS:
        runs = final_runs(results, arm)
        column = {key: [run.measures[key] for run in runs] for key in runs[0].measures}
        share = f"{statistics.fmean(column['projected']):.0%}" if any(column["projected"]) else "–"
        rows.append(
            [
                *(ARMS[arm], f"{runs[0].setting['lr']:g}"),
                f"×{format_cell(column['growth'], 2)}",
                *(format_cell(column["effective_step"], 4), share),
                f"{statistics.fmean(column['train_runtime']):.0f}",
            ]
        )
    titles = ["convolutions", "rate", "growth of their norm", "mean effective step"]
    return format_table([*titles, "projected", "seconds"], rows)


def main() -> None:
    """Print the tables, and draw."""
    root = Path(sys.argv[1])
    results = ResultsFile(root / "results.jsonl").read()
    if not any(result.setting["stage"] == "final" for result in results):
        sys.exit(
            f"{root} holds no finished run; run recipes/object_detection/launch/demo.sh first."
        )
    searched = search_table(results, DEMO_ARMS, RATES, CHOSEN_BY, "validation AP, %")
    print(f"\n{searched}\n\n{differences(results)}\n\n{training_table(results)}")
    runs = {arm: final_runs(results, arm) for arm in DEMO_ARMS}
    logs = {
        ARMS[arm]: [folder(root, run) / "projection.jsonl" for run in seeds]
        for arm, seeds in runs.items()
    }
    title = "CenterNet on rendered scenes: convolutions that feed a BatchNorm"
    picture = plot_runs(logs, root / "training.png", title=title, weights=CONVOLUTIONS)
    print(f"\npicture: {picture}")
    first = {ARMS[arm]: folder(root, seeds[0]) for arm, seeds in runs.items()}
    print(f"picture: {draw_detections(first, root / 'detections.png')}")


if __name__ == "__main__":
    main()
