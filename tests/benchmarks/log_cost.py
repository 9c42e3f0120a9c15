"""What the log adds to a training step, on steps that are logged and on those between.

python -m tests.benchmarks.log_cost              print the table
python -m tests.benchmarks.log_cost --output     write it into docs/diagnostics.md

The optimizer takes steps with the log and without in turn, by blocks of as many as there are
between logs, on the gradients of one backward pass. What the log adds is the difference of the
medians; it is held against a whole step, forward and backward pass included. All is processor time
of one thread.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from hf_adamp import AdamP, get_param_groups
from hf_adamp.diagnostics import StepLog
from tests.benchmarks import report
from tests.benchmarks.end_to_end import MODELS, Batch
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "diagnostics.md", "log-cost")
EVERY = 10
OPTIMIZERS = {"AdamP": (AdamP, {}), "fused AdamW": (torch.optim.AdamW, {"fused": True})}


def seconds(action: Callable[[], object]) -> float:
    """Time one call, by the processor: others on the machine do not count."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def measure(model: nn.Module, batch: Batch, name: str, rounds: int) -> list[float]:
    """Seconds: a whole step; and what the log adds to a step between logs and to a logged one."""
    optimizer_class, options = OPTIMIZERS[name]
    optimizer = optimizer_class(get_param_groups(model, weight_decay=0.01), lr=1e-7, **options)
    whole, plain, between, logged = [], [], [], []

    def train() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    def step_and_read(log: StepLog) -> None:
        optimizer.step()
        log.read(loss=0.0)

    for _ in range(rounds + 1):
        whole.append(seconds(train))
        plain += [seconds(optimizer.step) for _ in range(EVERY)]
        with (
            tempfile.TemporaryDirectory() as folder,
            StepLog(optimizer, model, every=EVERY, jsonl=Path(folder) / "log.jsonl") as log,
        ):
            # The first step is between logs, and begins to record.
            steps = [seconds(lambda: step_and_read(log)) for _ in range(2 * EVERY)]
        logged += steps[EVERY - 1 :: EVERY]
        between += [steps[i] for i in range(1, 2 * EVERY) if (i + 1) % EVERY]
    step = statistics.median(plain[EVERY:])
    return [
        statistics.median(whole[1:]),
        statistics.median(between) - step,
        statistics.median(logged) - step,
    ]


def table(rounds: int) -> Iterator[str]:
    """The page's table, line by line."""
    torch.set_num_threads(1)
    yield (
        "| training step | optimizer | whole step, ms | added between logs, ms | added to a logged "
        f"step, ms | share of training, a log every {EVERY} steps |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for title, (build, batch_size) in MODELS.items():
        for name in OPTIMIZERS:
            torch.manual_seed(0)
            whole, between, logged = measure(*build(batch_size), name, rounds)
            share = ((EVERY - 1) * between + logged) / (EVERY * whole)
            cells = f"{1e3 * whole:.0f} | {1e3 * between:.2f} | {1e3 * logged:.1f} | {share:.2%}"
            yield f"| {title} | {name} | {cells} |"


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    about, name = __doc__.partition("\n")[0], "tests.benchmarks.log_cost"
    return report.measure_and_write(name, about, SECTION, table, arguments, rounds=8)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
