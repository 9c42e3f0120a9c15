"""Train the small form over optimizers, learning rates, weight decays, momenta, batches and seeds.

    python -m recipes.image_classification.grid demo      # what `make demo` runs
    python -m recipes.image_classification.grid full      # what `make grid` runs

Each run is `train.py` with configs/small.yaml, in one of `--workers` processes of one thread each.
Results go to runs/image_classification/results.jsonl as they come; what is there is not run again.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from hf_adamp.diagnostics.plots import read_run
from recipes.common.results import Result, ResultsFile
from recipes.common.small_convnet import CONVOLUTIONS
from recipes.common.weight_growth import measure_growth

from .train import main as train

__all__ = ["DECAYS", "MOMENTUM", "RATES", "RUNS", "jobs", "run", "run_folder"]

RUNS = Path("runs", "image_classification")
CONFIG = Path(__file__).parent / "configs" / "small.yaml"
# Of each family none, the usual one, and the best for as few steps as these.
DECAYS = {"adam": (0.0, 0.1, 1.0), "sgd": (0.0, 5e-4, 2e-3)}
RATES = {"adam": (3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
FAMILIES = {"adam": ("adamw_torch", "adamp"), "sgd": ("sgd", "sgdp")}
MOMENTUM, HIGH_MOMENTUM = 0.9, 0.99
BATCH, LARGE_BATCHES = 128, (512, 2048)
# How a rate for a batch of 128 becomes one for a larger batch: `schedules.scaled_rate`.
SCALING = {"adam": "sqrt", "sgd": "linear"}


def _cell(family: str, rate: float, decay: float, **other: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return both arms of a family at one setting."""
    setting = {"lr": rate, "weight_decay": decay, "momentum": MOMENTUM, "batch": BATCH} | other
    return [(arm, setting) for arm in FAMILIES[family]]


def _demo_cells() -> Iterable[tuple[str, dict[str, Any]]]:
    """A part of the full grid: rates at the usual decay, decays at the middle rate, two momenta."""
    middle, usual = RATES["adam"][1], DECAYS["adam"][1]
    for rate in RATES["adam"]:
        yield from _cell("adam", rate, usual)
    for decay in (DECAYS["adam"][0], DECAYS["adam"][2]):
        yield from _cell("adam", middle, decay)
    for momentum in (MOMENTUM, HIGH_MOMENTUM):
        yield from _cell("sgd", RATES["sgd"][1], DECAYS["sgd"][1], momentum=momentum)


def _full_cells() -> Iterable[tuple[str, dict[str, Any]]]:
    """Rates and decays, high momentum, and large batches at the middle rate.

    Every rate meets every decay for the Adams; for SGD rates meet the usual decay, and decays the
    middle rate.
    """
    yield from _demo_cells()
    for rate, decay in itertools.product(RATES["adam"], DECAYS["adam"]):
        yield from _cell("adam", rate, decay)
    for rate in RATES["sgd"]:
        yield from _cell("sgd", rate, DECAYS["sgd"][1])
    for decay in DECAYS["sgd"]:
        yield from _cell("sgd", RATES["sgd"][1], decay)
    for family in FAMILIES:
        usual = DECAYS[family][1]
        for rate in RATES[family][:2]:
            yield from _cell(family, rate, usual, momentum=HIGH_MOMENTUM)
        for batch in LARGE_BATCHES:
            yield from _cell(family, RATES[family][1], usual, batch=batch)


def jobs(size: str) -> list[Result]:
    """Return the runs of the demo (three seeds) or of the full grid (five), none twice."""
    cells, seeds = {"demo": (_demo_cells, 3), "full": (_full_cells, 5)}[size]
    made = [Result(arm, setting, seed) for seed in range(1, seeds + 1) for arm, setting in cells()]
    return list({job.key: job for job in made}.values())


def run_folder(job: Result) -> Path:
    """Return where a run's files are."""
    numbers = "-".join(f"{name}{value:g}" for name, value in job.setting.items())
    return RUNS / f"{job.arm}-{numbers}-seed{job.seed}"


def options(job: Result) -> list[str]:
    """Return the command line of a run, after `train`."""
    setting = job.setting
    family = "sgd" if job.arm in FAMILIES["sgd"] else "adam"
    line = {
        "output_dir": run_folder(job),
        "optim": job.arm,
        "seed": job.seed,
        "learning_rate": setting["lr"],
        "weight_decay": setting["weight_decay"],
        "per_device_train_batch_size": setting["batch"],
        "base_batch": BATCH,
        "lr_scaling": SCALING[family],
        # About 16 logged steps a run, however few steps there are.
        "logging_steps": max(1, 23 * BATCH // setting["batch"]),
    }
    if family == "sgd":
        line["optim_args"] = f"momentum={setting['momentum']}"
    else:
        line["adam_beta1"] = setting["momentum"]
    return [
        str(CONFIG),
        *(part for name, value in line.items() for part in (f"--{name}", str(value))),
    ]


def run(job: Result) -> Result:
    """Train one model on one thread; return what it came to."""
    torch.set_num_threads(1)
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        measured = train(options(job))
    kept = {
        f"{split}_{measure}": measured[f"{split}_{measure}"]
        for split in ("validation", "test")
        for measure in ("accuracy", "loss")
    }
    rows = read_run(run_folder(job) / "projection.jsonl", CONVOLUTIONS)
    seconds = {"processor_seconds": time.process_time() - begin}
    return dataclasses.replace(job, measures={**kept, **measure_growth(rows), **seconds})


def run_all(todo: Sequence[Result], file: ResultsFile, workers: int) -> None:
    """Run jobs side by side, and write each result when it is there."""
    begin = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(run, job) for job in todo]
        for number, future in enumerate(as_completed(futures), 1):
            result = future.result()
            file.add(result)
            accuracy = result.measures["test_accuracy"]
            setting = ", ".join(f"{name} {value:g}" for name, value in result.setting.items())
            print(
                f"{number:3} of {len(todo)}, {time.monotonic() - begin:4.0f} s: {result.arm}, "
                f"{setting}, seed {result.seed}: test accuracy {accuracy:.2%}",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("size", choices=("demo", "full"))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only-run", action="store_true", help="write no tables and pictures")
    chosen = parser.parse_args(arguments)
    file = ResultsFile(RUNS / "results.jsonl")
    run_all(file.missing(jobs(chosen.size)), file, chosen.workers)
    if not chosen.only_run:
        from .report import report  # noqa: PLC0415 -- it reads this module's settings

        report(file.read(), chosen.size)


if __name__ == "__main__":
    main()
