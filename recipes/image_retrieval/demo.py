r"""The small run: AdamW and AdamP on icons, BatchNorm live and frozen, in one process.

    python -m recipes.image_retrieval.demo runs/retrieval_demo --stage search
    python -m recipes.image_retrieval.demo runs/retrieval_demo --stage final

First the learning rate of each arm and variant is chosen by Recall@1 on a fifth of the training
concepts, held out, with a seed that is not used again; then all seeds train on all training
concepts, and the test concepts are scored. Untrained networks run with one equal rate, too.
Variants that begin with trained weights need them in `ROOT/backbone`: `launch/demo.sh` makes them
first. A run that is in results.jsonl already is not repeated. `--part 0 --of 2` and `--part 1
--of 2` share the work between two processes.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from hf_adamp.diagnostics.plots import read_run
from recipes.common.arguments import parse
from recipes.common.results import Result
from recipes.common.two_stages import chosen_rate, run_stages
from recipes.common.weight_growth import measure_growth

from .modeling_embedder import CONVOLUTIONS
from .train import DataArguments, ModelArguments, run
from .trainer import RetrievalArguments

__all__ = [
    "DEMO_ARMS",
    "EQUAL_RATE",
    "KINDS",
    "RATES",
    "VARIANTS",
    "final_jobs",
    "folder",
    "search_jobs",
]

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
DEMO_ARMS = ("adamw_torch", "adamp")
# How a run starts, and whether its BatchNorms are frozen. Freezing needs pretrained weights.
VARIANTS: Mapping[str, str] = {
    "scratch": "untrained, BatchNorm live",
    "live": "pretrained, BatchNorm live",
    "frozen": "pretrained, BatchNorm frozen",
}
RATES = (1e-3, 3e-3, 1e-2)
# A small validation set can choose badly, so both arms also run untrained networks at this rate.
EQUAL_RATE = 3e-3
SEARCH_SEEDS, SEEDS = (101,), (1, 2, 3, 4, 5)
HELD_OUT = 0.2  # of the training concepts, in the search
CHOSEN_BY = "validation_recall_at_1"
# The weights that are followed.
KINDS: Mapping[str, str] = {"filters": CONVOLUTIONS, "proxies": r"proxies$"}


def search_jobs() -> Iterator[Result]:
    """Yield the runs that a rate is chosen by."""
    for seed, variant, rate, arm in itertools.product(SEARCH_SEEDS, VARIANTS, RATES, DEMO_ARMS):
        yield Result(arm, {"variant": variant, "lr": rate, "stage": "search"}, seed)


def final_jobs(results: Sequence[Result]) -> Iterator[Result]:
    """Yield the runs that are reported, seed by seed."""
    for seed, variant, arm in itertools.product(SEEDS, VARIANTS, DEMO_ARMS):
        rate = chosen_rate(results, arm, CHOSEN_BY, variant=variant)
        yield Result(arm, {"variant": variant, "lr": rate, "stage": "final"}, seed)
    for seed, arm in itertools.product(SEEDS, DEMO_ARMS):
        yield Result(arm, {"variant": "scratch", "lr": EQUAL_RATE, "stage": "equal"}, seed)


def folder(root: Path, job: Result) -> Path:
    """Return where a run's model and logs are."""
    variant, rate, stage = (job.setting[name] for name in ("variant", "lr", "stage"))
    return root / stage / f"{job.arm}-{variant}-{rate}-{job.seed}"


def options_of(root: Path, job: Result) -> list[str]:
    """Return the options of a run."""
    options = {
        **{"--output_dir": folder(root, job), "--optim": job.arm, "--seed": job.seed},
        "--learning_rate": job.setting["lr"],
    }
    if job.setting["stage"] == "search":
        options |= {"--validation_share": HELD_OUT, "--eval_strategy": "no"}
    if job.setting["variant"] != "scratch":
        options["--backbone"] = root / "backbone"
        options["--freeze_batch_norms"] = job.setting["variant"] == "frozen"
    return [str(CONFIG), *(str(word) for pair in options.items() for word in pair)]


def measure(root: Path, job: Result) -> Result:
    """Train, and add Recall@K and what became of filters and proxies."""
    output = folder(root, job)
    output.mkdir(parents=True, exist_ok=True)
    arguments = parse((ModelArguments, DataArguments, RetrievalArguments), options_of(root, job))
    with (output / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
        found = run(*arguments)
    kept = {key: value for key, value in found.items() if "_at_" in key or key == "train_runtime"}
    for kind, weights in KINDS.items():
        rows = read_run(output / "projection.jsonl", weights=weights)
        kept |= {f"{kind}_{key}": value for key, value in measure_growth(rows).items()}
        shares = [1 - row["not_projected"] for row in rows if "not_projected" in row]
        kept[f"{kind}_projected"] = statistics.fmean(shares or [0.0])
    return dataclasses.replace(job, measures=kept)


def main() -> None:
    """Do what is left of a stage."""
    run_stages(
        "Retrieval on a small scale, on icons.",
        search_jobs=search_jobs,
        final_jobs=final_jobs,
        measure=measure,
    )


if __name__ == "__main__":
    main()
