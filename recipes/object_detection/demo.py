r"""The small run: AdamW and AdamP with CenterNet on rendered scenes, in one process.

    python -m recipes.object_detection.demo runs/detection_demo --stage search
    python -m recipes.object_detection.demo runs/detection_demo --stage final

First each arm's learning rate is chosen by AP on the validation scenes, with a seed that is not
used again; then all seeds run with it and the test scenes are scored. A run that is in
results.jsonl already is not repeated. `--part 0 --of 2` and `--part 1 --of 2` share the work
between two processes.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from hf_adamp.diagnostics.plots import read_run
from recipes.common.arguments import parse
from recipes.common.matched_trainer import MatchedArguments
from recipes.common.results import Result
from recipes.common.two_stages import chosen_rate, run_stages
from recipes.common.weight_growth import measure_growth

from .train import DataArguments, ModelArguments, run

__all__ = ["CONVOLUTIONS", "DEMO_ARMS", "RATES", "final_jobs", "folder", "search_jobs"]

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
DEMO_ARMS = ("adamw_torch", "adamp")
RATES = (2e-3, 5e-3, 1e-2, 2e-2)
SEARCH_SEEDS, SEEDS = (101,), (1, 2, 3)
CHOSEN_BY = "validation_ap"
# Those that feed a BatchNorm: the ResNet's and the steps up's.
CONVOLUTIONS = r"convolution\.weight$|^neck\.\d+\.[03]\.weight$"


def search_jobs() -> Iterator[Result]:
    """Yield the runs that a rate is chosen by."""
    for seed, rate, arm in itertools.product(SEARCH_SEEDS, RATES, DEMO_ARMS):
        yield Result(arm, {"lr": rate, "stage": "search"}, seed)


def final_jobs(results: Sequence[Result]) -> Iterator[Result]:
    """Yield the runs that are reported, seed by seed."""
    for seed, arm in itertools.product(SEEDS, DEMO_ARMS):
        yield Result(arm, {"lr": chosen_rate(results, arm, CHOSEN_BY), "stage": "final"}, seed)


def folder(root: Path, job: Result) -> Path:
    """Return where a run's model and logs are."""
    return root / job.setting["stage"] / f"{job.arm}-{job.setting['lr']}-{job.seed}"


def measure(root: Path, job: Result) -> Result:
    """Train an arm, and add what it came to."""
    output = folder(root, job)
    output.mkdir(parents=True, exist_ok=True)
    options = [
        *(str(CONFIG), "--output_dir", str(output), "--optim", job.arm),
        *("--seed", str(job.seed), "--learning_rate", str(job.setting["lr"])),
    ]
    arguments = parse((ModelArguments, DataArguments, MatchedArguments), options)
    with (output / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
        found = run(*arguments, test=job.setting["stage"] == "final")
    kept = {key: value for key, value in found.items() if "_a" in key or key == "train_runtime"}
    rows = read_run(output / "projection.jsonl", weights=CONVOLUTIONS)
    kept |= measure_growth(rows)
    shares = [1 - row["not_projected"] for row in rows if "not_projected" in row]
    kept["projected"] = statistics.fmean(shares or [0.0])
    return dataclasses.replace(job, measures=kept)


def main() -> None:
    """Do what is left of a stage."""
    run_stages(
        "CenterNet in small, on rendered scenes.",
        search_jobs=search_jobs,
        final_jobs=final_jobs,
        measure=measure,
    )


if __name__ == "__main__":
    main()
