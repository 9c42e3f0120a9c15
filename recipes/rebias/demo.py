r"""The small run: every arm, two shares of bias, five seeds, in one process.

    python -m recipes.rebias.demo runs/rebias_demo --stage search
    python -m recipes.rebias.demo runs/rebias_demo --stage final

First each arm's learning rate is chosen by the unbiased accuracy on the validation set, with seeds
that are not used again; then all seeds run with it. A run that is in results.jsonl already is not
repeated. `--part 0 --of 2` and `--part 1 --of 2` share the work between two processes.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from hf_adamp.diagnostics.plots import read_run
from recipes.common.arguments import parse
from recipes.common.paired import choose
from recipes.common.results import Result, ResultsFile
from recipes.common.weight_growth import measure_growth

from .tasks import DataArguments, ModelArguments
from .train import RunArguments, run

__all__ = ["DEMO_ARMS", "RHOS", "chosen_rate", "main"]

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
DEMO_ARMS = ("adam_l2", "adamw_torch", "adamp")
RHOS = (0.99, 0.95)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SEARCH_RHO, SEARCH_SEEDS = 0.95, (101,)
SEEDS = (1, 2, 3, 4, 5)
CHOSEN_BY = "validation_unbiased"
CONVOLUTIONS = r"^features\."  # the scale-invariant weights


def search_jobs() -> Iterator[Result]:
    """Yield the runs that a rate is chosen by."""
    for seed, rate, arm in itertools.product(SEARCH_SEEDS, RATES, DEMO_ARMS):
        yield Result(arm, {"rho": SEARCH_RHO, "lr": rate, "stage": "search"}, seed)


def chosen_rate(results: list[Result], arm: str) -> float:
    """Return the learning rate with the best unbiased accuracy on the validation set."""
    rate: float = choose(results, arm, CHOSEN_BY, among={"stage": "search"})["lr"]
    return rate


def final_jobs(results: list[Result]) -> Iterator[Result]:
    """Yield the runs that are reported, seed by seed."""
    for seed, rho, arm in itertools.product(SEEDS, RHOS, DEMO_ARMS):
        setting = {"rho": rho, "lr": chosen_rate(results, arm), "stage": "final"}
        yield Result(arm, setting, seed)


def folder(root: Path, job: Result) -> Path:
    """Return where a run keeps its logs."""
    rho, rate, stage = (job.setting[name] for name in ("rho", "lr", "stage"))
    return root / stage / f"{job.arm}-{rho}-{rate}-{job.seed}"


def measure(root: Path, job: Result) -> dict[str, float]:
    """Train, and return the measures with the growth of both networks' convolutions."""
    output = folder(root, job)
    options = {
        **{"--optim": job.arm, "--seed": job.seed, "--output_dir": output},
        **{"--rho": job.setting["rho"], "--learning_rate": job.setting["lr"]},
    }
    words = [str(word) for pair in options.items() for word in pair]
    measures = run(*parse((ModelArguments, DataArguments, RunArguments), [str(CONFIG), *words]))
    for name in ("f", "g"):
        rows = read_run(output / f"projection_{name}.jsonl", weights=CONVOLUTIONS)
        measures |= {f"{name}_{key}": value for key, value in measure_growth(rows).items()}
    return measures


def main() -> None:
    """Do what is left of a stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--stage", choices=("search", "final"), required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    args = parser.parse_args()
    file = ResultsFile(args.root / "results.jsonl")
    jobs = list(search_jobs() if args.stage == "search" else final_jobs(file.read()))
    mine = [job for number, job in enumerate(jobs) if number % args.of == args.part]
    for job in tqdm(file.missing(mine), desc=args.stage):
        file.add(dataclasses.replace(job, measures=measure(args.root, job)))


if __name__ == "__main__":
    main()
