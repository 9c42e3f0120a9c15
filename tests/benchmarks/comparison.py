"""AdamW, AdamP and AdamP with declared weights on two small real tasks, tuned alike, five seeds.

python -m tests.benchmarks.comparison              print the tables
python -m tests.benchmarks.comparison --output     write them into docs/comparison.md

Every arm gets the same learning rates, of which the validation loss of two seeds chooses one; five
other seeds then train with it and are tested. Two processes of one thread each share the runs.
"""

import argparse
import itertools
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from scipy import stats
from torch import nn

from hf_adamp import AdamP, get_param_groups
from hf_adamp.diagnostics import StepLog
from tests.benchmarks import report
from tests.benchmarks.comparison_tasks import TASKS, Task
from tests.pages import DOCS, Section

PAGE = DOCS / "comparison.md"
ARMS = ("AdamW", "AdamP", "AdamP, declared")
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS, TEST_SEEDS = (101, 102), (1, 2, 3, 4, 5)
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Run:
    """One training, and what it came to; shares are None where nothing is projected.

    `seconds` are the processor's, the task's data aside.
    """

    task: str
    arm: str
    lr: float
    seed: int
    valid: float = float("nan")
    test: float = float("nan")
    accuracy: float = float("nan")
    growth: float = float("nan")
    hits: float | None = None
    strays: float | None = None
    seconds: float = 0.0


def train(run: Run, steps: int | None = None) -> Run:
    """Train one model, and measure it on both sets."""
    torch.set_num_threads(1)
    task = TASKS[run.task]
    steps = steps or task.steps
    task.data("train")
    begin = time.process_time()
    torch.manual_seed(run.seed)
    model = task.build()
    invariant = {n: p for n, p in model.named_parameters() if re.search(task.invariant, n)}
    optimizer = make_optimizer(run.arm, run.lr, model, task)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    before = _norm(invariant.values())
    order = torch.Generator().manual_seed(run.seed)
    with StepLog(optimizer, model, every=steps, per_kind=False, weights="") as log:
        for _ in range(steps):
            loss = task.loss(model, task.batch("train", order))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        told = log.read()
    misses = {k.partition("/")[2]: v for k, v in told.items() if k.startswith("not_projected/")}
    hits = [1 - v for name, v in misses.items() if name in invariant]
    strays = [1 - v for name, v in misses.items() if name not in invariant]
    valid, _ = task.evaluate(model, "valid")
    test, accuracy = task.evaluate(model, "test")
    return Run(
        *(run.task, run.arm, run.lr, run.seed, valid, test, accuracy),
        growth=_norm(invariant.values()) / before - 1,
        hits=statistics.fmean(hits) if hits else None,
        strays=statistics.fmean(strays) if strays else None,
        seconds=time.process_time() - begin,
    )


def make_optimizer(arm: str, lr: float, model: nn.Module, task: Task) -> torch.optim.Optimizer:
    """Build an arm; all have the same weights decayed."""
    groups = get_param_groups(model, weight_decay=WEIGHT_DECAY)
    if arm == "AdamW":
        return torch.optim.AdamW(groups, lr=lr)
    if arm == "AdamP":
        return AdamP(groups, lr=lr)
    names = {id(p): name for name, p in model.named_parameters()}
    split = []
    for group in groups:
        for declared in (True, False):
            params = [
                p
                for p in group["params"]
                if bool(re.search(task.invariant, names[id(p)])) is declared
            ]
            known = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            value = task.declared if declared else False
            split.append({**known, "params": params, "scale_invariant": value})
    return AdamP([group for group in split if group["params"]], lr=lr)


def _norm(weights: Iterable[torch.Tensor]) -> float:
    return float(torch.stack([w.detach().norm() for w in weights]).norm())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of Student's 95% confidence interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def tuning_table(runs: Sequence[Run]) -> tuple[str, dict[str, float]]:
    """Validation losses by arm and learning rate; and the best rate of each arm."""
    rates = sorted({run.lr for run in runs})
    rows = [
        "| validation loss, mean of two seeds | " + " | ".join(f"{lr:g}" for lr in rates) + " |",
        "|---|" + "---:|" * len(rates),
    ]
    best = {}
    for arm in ARMS:
        losses = {
            lr: statistics.fmean(r.valid for r in runs if (r.arm, r.lr) == (arm, lr))
            for lr in rates
        }
        best[arm] = min(losses, key=losses.__getitem__)
        cells = [f"**{v:.4f}**" if lr == best[arm] else f"{v:.4f}" for lr, v in losses.items()]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows), best


def results_table(runs: Sequence[Run]) -> str:
    """Test results by arm with confidence intervals, and what each arm has over AdamW."""
    rows = [
        "| mean ± 95% confidence interval | learning rate | test loss | less AdamW's, same seed "
        "| test accuracy, % | invariant weights grew by | projected, of them | of the others |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    base = {r.seed: r.test for r in runs if r.arm == ARMS[0]}
    for arm in ARMS:
        mine = [r for r in runs if r.arm == arm]
        loss, accuracy = (
            interval([r.test for r in mine]),
            interval([100 * r.accuracy for r in mine]),
        )
        over = interval([r.test - base[r.seed] for r in mine])
        shares = [
            "–" if None in values else f"{statistics.fmean(values):.1%}"
            for values in ([r.hits for r in mine], [r.strays for r in mine])
        ]
        difference = "–" if arm == ARMS[0] else f"{over[0]:+.4f} ± {over[1]:.4f}"
        rows.append(
            f"| {arm} | {mine[0].lr:g} | {loss[0]:.4f} ± {loss[1]:.4f} | {difference} "
            f"| {accuracy[0]:.2f} ± {accuracy[1]:.2f} "
            f"| {statistics.fmean(r.growth for r in mine):.1%} | {' | '.join(shares)} |"
        )
    return "\n".join(rows)


def compare(tasks: Sequence[str], steps: int | None, rates: Sequence[float]) -> dict[str, str]:
    """Tune and test on every task; return a section each."""
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        grid = [Run(*job) for job in itertools.product(tasks, ARMS, rates, TUNING_SEEDS)]
        tuned = list(pool.map(train, grid, [steps] * len(grid)))
        tables = {task: tuning_table([r for r in tuned if r.task == task]) for task in tasks}
        jobs = [
            Run(task, arm, tables[task][1][arm], seed)
            for task, arm, seed in itertools.product(tasks, ARMS, TEST_SEEDS)
        ]
        tested = list(pool.map(train, jobs, [steps] * len(jobs)))
    minutes = sum(run.seconds for run in tuned + tested) / 60
    sections = {
        task: f"{tables[task][0]}\n\n{results_table([r for r in tested if r.task == task])}"
        for task in tasks
    }
    sections["machine"] = (
        f"{len(tuned + tested)} runs, {minutes:.0f} minutes of processor time shared by two "
        f"processes. {report.machine()}"
    )
    return sections


def main(arguments: Sequence[str]) -> dict[str, str]:
    """Compare, print and return the sections of the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.comparison", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--task", choices=TASKS, nargs="+", default=[*TASKS], help="(all)")
    parser.add_argument("--steps", type=int, help="of each run (a task's own number)")
    parser.add_argument("--lr", type=float, nargs="+", default=LEARNING_RATES, help="%(default)s")
    parser.add_argument("--output", action="store_true", help=f"write into {PAGE.name}")
    options = parser.parse_args(arguments)
    sections = compare(options.task, options.steps, options.lr)
    command = shlex.join(["python", "-m", "tests.benchmarks.comparison", *arguments])
    sections["machine"] += f"\n\nCommand: `{command}`"
    for name, text in sections.items():
        print(f"{text}\n")
        if options.output:
            Section(PAGE, f"comparison-{name}").write(text)
    return sections


if __name__ == "__main__":
    main(sys.argv[1:])
