"""Train a small network under each of DeepSpeed ZeRO's stages, beside one process.

Prints the table of docs/distributed.md: how far weights are from the single process's after six
steps, what the processes say to each other in a step, and what other packages do there. `make
test-deepspeed` makes the environment; `make bench` installs the other packages into .venv/bench, to
be put on PYTHONPATH. Three minutes on two cores.
"""

import importlib
from importlib.metadata import version

import torch

# First: it sets what DeepSpeed looks for in its environment.
import tests.optim.zero.conftest  # noqa: F401
from tests.optim.distributed.counting import CountedCollectives
from tests.optim.distributed.processes import Pool
from tests.optim.zero.test_zero_training import CASES
from tests.pages import DOCS, Section, print_or_write
from tests.tables.distributed_strategies import (
    CONTENDERS,
    LIMIT,
    OPTIONS,
    STEPS,
    Outcome,
    contender_names,
    described,
    outcome,
)

SECTION = Section(DOCS / "distributed.md", "zero")


def _trained(stage, cls):
    from tests.optim.zero.engines import STAGES, Pair

    pair = Pair(STAGES[stage], cls, **OPTIONS)
    step, calls = pair.optimizer.step, []

    def counted(*args, **kwargs):
        with CountedCollectives() as collectives:
            result = step(*args, **kwargs)
        calls.append(collectives)
        return result

    pair.optimizer.step = counted
    for number in range(STEPS):
        calls.clear()
        pair.step(number)
    weights = [(whole, twin.detach()) for _, _, whole, twin in pair.weights()]
    actual, alone = (
        torch.cat([weight.flatten() for weight in column]) for column in zip(*weights, strict=True)
    )
    return actual, alone, calls


def train(stage: str, package: str) -> Outcome:
    """Run in every process; where it is not one process's, AdamW's weights are looked at, too."""
    actual, alone, calls = _trained(stage, importlib.import_module(package).AdamP)
    deviation = (actual - alone).abs().max().item()
    if deviation >= LIMIT:
        _, adamw, _ = _trained(stage, torch.optim.AdamW)
        return Outcome(deviation, off_adamw=(actual - adamw).abs().max().item())
    said = sum(len(each.calls) for each in calls), sum(each.total_bytes for each in calls)
    return Outcome(deviation, *said)


def rows():
    """One line of the table after the other."""
    for name, size in CASES:
        pool = Pool(size)
        try:
            ours, *others = (outcome(pool, package, train, name, package) for package in CONTENDERS)
        finally:
            pool.close()
        cells = [name, str(size), ours.verdict, f"{ours.deviation:.0e}"]
        cells += [str(ours.collectives), str(ours.bytes), *map(described, others)]
        yield f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the table in Markdown."""
    names = contender_names()
    head = ["Strategy", "processes", names[0], "max. deviation", "all-reduces a step"]
    head += ["bytes a step", *names[1:]]
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | --- | ---: | ---: | ---: | --- | --- |"]
    made = (
        f"AdamP, {STEPS} steps, gloo, DeepSpeed {version('deepspeed')}, torch "
        f"{torch.__version__}; made by `python -m tests.tables.zero_strategies --write`."
    )
    return "\n".join([*lines, *rows(), "", made])


if __name__ == "__main__":
    print_or_write(table, SECTION, (__doc__ or "").partition("\n")[0])
