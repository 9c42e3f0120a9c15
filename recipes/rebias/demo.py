r"""The small run: every arm, two shares of bias, five seeds, in one process.

    python -m recipes.rebias.demo runs/rebias_demo --stage search
    python -m recipes.rebias.demo runs/rebias_demo --stage final

First each arm's learning rate is chosen by the unbiased accuracy on the validation set, with seeds
that are not used again; then all seeds run with it. A run that is in results.jsonl already is not
repeated. `--part 0 --of 2` and `--part 1 --of 2` share the work between two processes.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_adamp.diagnostics.plots import read_run
from recipes.common.arguments import parse
from recipes.common.results import Result
from recipes.common.two_stages import chosen_rate, run_stages
from recipes.common.weight_growth import measure_growth

from .tasks import DataArguments, ModelArguments
from .train import RunArguments, run

__all__ = ["DEMO_ARMS", "RATES", "RHOS", "SEEDS", "final_jobs", "folder", "main", "search_jobs"]

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


def final_jobs(results: Sequence[Result]) -> Iterator[Result]:
    """Yield the runs that are reported, seed by seed."""
    for seed, rho, arm in itertools.product(SEEDS, RHOS, DEMO_ARMS):
        setting = {"rho": rho, "lr": chosen_rate(results, arm, CHOSEN_BY), "stage": "final"}
        yield Result(arm, setting, seed)


def folder(root: Path, job: Result) -> Path:
    """Return where a run keeps its logs."""
    rho, rate, stage = (job.setting[name] for name in ("rho", "lr", "stage"))
    return root / stage / f"{job.arm}-{rho}-{rate}-{job.seed}"


def measure(root: Path, job: Result) -> Result:
    """Train, and add the measures and the growth of both networks' convolutions."""
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
    return dataclasses.replace(job, measures=measures)


def main() -> None:
    """Do what is left of a stage."""
    run_stages(
        "ReBias in small, on real digits.",
        search_jobs=search_jobs,
        final_jobs=final_jobs,
        measure=measure,
    )


if __name__ == "__main__":
    main()
