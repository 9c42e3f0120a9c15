"""The small run: every arm on silhouettes, with the settings that the search has chosen.

    python -m recipes.adversarial_training.demo runs/adversarial_demo --seeds 1 2 3
    python -m recipes.adversarial_training.demo runs/adversarial_search --search

The first measures on the test set, strong attacks included; the second tries the rates and decays
of `GRID` on the validation set and says which were best. A run that the folder's results.jsonl has
is not repeated, and two processes may share the file if their seeds differ.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hf_adamp.diagnostics.plots import read_run
from recipes.common.arguments import parse
from recipes.common.arms import ARMS
from recipes.common.matched_trainer import MatchedArguments
from recipes.common.paired import choose
from recipes.common.results import Result, ResultsFile
from recipes.common.small_convnet import CONVOLUTIONS
from recipes.common.weight_growth import measure_growth

from .train import AttackArguments, DataArguments, ModelArguments, run

__all__ = ["ATTACKS", "CHOSEN", "folder_of"]

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
SEARCH_SEEDS = (101,)
# Three rates for every arm; the decays are the usual ones, which hardly act within 120 steps.
GRID: dict[str, list[tuple[float, float]]] = {
    "adam_l2": [(3e-3, 5e-4), (1e-2, 5e-4), (3e-2, 5e-4)],
    "adamw_torch": [(3e-3, 0.1), (1e-2, 0.1), (3e-2, 0.1)],
    "adamp": [(3e-3, 0.1), (1e-2, 0.1), (3e-2, 0.1)],
    "sgd": [(0.03, 5e-4), (0.1, 5e-4), (0.3, 5e-4)],
    "sgdp": [(0.03, 5e-4), (0.1, 5e-4), (0.3, 5e-4)],
}
# What `--search` chose by attacked accuracy on the validation set: rate and weight decay.
CHOSEN: dict[str, tuple[float, float]] = {
    "adam_l2": (3e-2, 5e-4),
    "adamw_torch": (1e-2, 0.1),
    "adamp": (1e-2, 0.1),
    "sgd": (0.3, 5e-4),
    "sgdp": (0.3, 5e-4),
}
# Radius in pixels of [0, 1]; those of l2 move an image of 28x28 about as much.
ATTACKS = {"linf": "0.1", "l2": "1.0"}


def jobs_of(seeds: list[int], norms: list[str], arms: list[str]) -> Iterator[Result]:
    """Yield the runs of the demo, seed by seed, so that a stopped one can be compared."""
    for seed in seeds:
        for norm in norms:
            for arm in arms:
                lr, decay = CHOSEN[arm]
                yield Result(arm, {"norm": norm, "lr": lr, "weight_decay": decay}, seed)


def search_jobs(arms: list[str]) -> Iterator[Result]:
    """Yield the runs of the search."""
    for seed in SEARCH_SEEDS:
        for arm in arms:
            for lr, decay in GRID[arm]:
                yield Result(arm, {"norm": "linf", "lr": lr, "weight_decay": decay}, seed)


def folder_of(root: Path, job: Result) -> Path:
    """Return where a run's model, measures and log are."""
    setting = "-".join(str(value) for value in job.setting.values())
    return root / f"{job.arm}-{setting}-{job.seed}"


def options_of(job: Result, output: Path) -> list[str]:
    """Return the options that differ between runs."""
    setting = job.setting
    options: dict[str, Any] = {
        "output_dir": output,
        "seed": job.seed,
        "norm": setting["norm"],
        "radius": ATTACKS[setting["norm"]],
        "learning_rate": setting["lr"],
        "weight_decay": setting["weight_decay"],
    }
    if job.arm == "adam_l2":
        options["adam_l2"] = "true"
    else:
        options["optim"] = job.arm
    if job.arm in ("sgd", "sgdp"):
        options["optim_args"] = "momentum=0.9"
    line = [str(CONFIG)]
    for name, value in options.items():
        line += [f"--{name}", str(value)]
    return line


def measure(job: Result, root: Path, *, search: bool) -> Result:
    """Train one arm and add what it came to."""
    output = folder_of(root, job)
    classes = (ModelArguments, DataArguments, AttackArguments, MatchedArguments)
    output.mkdir(parents=True, exist_ok=True)
    options = parse(classes, options_of(job, output))
    with (output / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
        results = run(*options, test=not search)
    kept = {
        name: value
        for name, value in results.items()
        if name.endswith("accuracy") or name.startswith("strong_after")
    }
    rows = read_run(output / "projection.jsonl", weights=CONVOLUTIONS)
    kept |= measure_growth(rows)
    projected = [1 - row["not_projected"] for row in rows if "not_projected" in row]
    kept["projected"] = statistics.fmean(projected or [0.0])
    kept["train_runtime"] = results["train_runtime"]
    return dataclasses.replace(job, measures=kept)


def main(argv: list[str] | None = None) -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--norms", nargs="+", default=["linf"], choices=sorted(ATTACKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--search", action="store_true", help="choose the settings")
    options = parser.parse_args(argv)
    file = ResultsFile(options.root / "results.jsonl")
    if options.search:
        jobs = file.missing(search_jobs(options.arms))
    else:
        jobs = file.missing(jobs_of(options.seeds, options.norms, options.arms))
    for number, job in enumerate(jobs, 1):
        print(f"== {number} of {len(jobs)}: {folder_of(options.root, job).name}", flush=True)
        file.add(measure(job, options.root, search=options.search))
    if options.search:
        for arm in options.arms:
            best = choose(file.read(), arm, "validation_attacked_accuracy")
            print(arm, json.dumps(best))


if __name__ == "__main__":
    main()
