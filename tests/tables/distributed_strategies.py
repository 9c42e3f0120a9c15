"""Train a small network in every way of spreading it, beside one process, with each optimizer.

Prints the table of docs/distributed.md: how far weights are from the single process's after six
steps, and what the processes say to each other in a step. Takes one to two minutes on two cores;
`make bench` installs the other packages into .venv/bench, to be put on PYTHONPATH.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.optim.distributed.counting import CountedCollectives
from tests.optim.distributed.processes import Pool
from tests.optim.distributed.sharded import whole
from tests.optim.distributed.strategies import STRATEGIES, Pair, Strategy
from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "distributed.md", "strategies")
STEPS = 6
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1}
# Round-off stays below; a projection that is missing or another one is far above.
LIMIT = 1e-5
CONTENDERS = {
    "hf_adamp": "hf-adamp",
    "adamp": "adamp",
    "pytorch_optimizer": "pytorch_optimizer",
}


def _fsdp1(model, use_orig_params):
    return FullyShardedDataParallel(
        model, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )


FLAT = [
    Strategy(f"FSDP1, use_orig_params={flag}", (2,), partial(_fsdp1, use_orig_params=flag))
    for flag in (True, False)
]
ROWS = [*STRATEGIES, *FLAT]


@dataclass(frozen=True)
class Outcome:
    """What became of one optimizer under one strategy, or the error that ended it.

    Attributes:
        deviation: the largest of a weight's elements from the single process's.
        collectives: in one step.
        bytes: put into them.
        error: what ended it.
        off_adamw: the largest deviation from torch's AdamW, where it was looked at.
    """

    deviation: float = 0.0
    collectives: int = 0
    bytes: int = 0
    error: str = ""
    off_adamw: float | None = None

    @property
    def verdict(self) -> str:
        if self.error:
            return self.error
        return "right" if self.deviation < LIMIT else "**wrong**"


def _weights(model):
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return [param.detach().clone() for param in model.parameters()]
    return [whole(param).detach() for param in model.parameters()]


def train(row: int, package: str) -> Outcome:
    """Run in every process; weights that are flat are compared as one vector."""
    cls = importlib.import_module(package).AdamP
    pair = Pair(ROWS[row], lambda params: cls(params, **OPTIONS))
    for step in range(STEPS):
        pair.backward(step)
        pair.single_optimizer.step()
        with CountedCollectives() as counted:
            pair.optimizer.step()
    actual, expected = (
        torch.cat([weight.flatten() for weight in _weights(model)])
        for model in (pair.spread, pair.single)
    )
    deviation = (actual[: len(expected)] - expected).abs().max().item()
    return Outcome(deviation, len(counted.calls), counted.total_bytes)


def outcome(pool: Pool, package: str, check: Callable[..., Outcome], *args: Any) -> Outcome:
    """The worst process's, or the error that ended one."""
    if find_spec(package) is None:
        return Outcome(error="not installed")
    try:
        return max(pool.run(check, *args), key=lambda each: each.deviation)
    except AssertionError as error:
        last = [line for line in str(error).splitlines() if ": " in line and line[0] != " "]
        if package == "hf_adamp" and "set delta=0" in str(error):
            return Outcome(error="refused, says why")
        return Outcome(error=f"crash ({last[0].partition(':')[0].rpartition('.')[2]})")


def rows():
    """One line of the table after the other."""
    for index, strategy in enumerate(ROWS):
        size = strategy.sizes[0]
        pool = Pool(size)
        try:
            ours, *others = (
                outcome(pool, package, train, index, package) for package in CONTENDERS
            )
        finally:
            pool.close()
        cells = [strategy.name, str(size), ours.verdict]
        if ours.error:
            cells += ["–", "–", "–"]
        else:
            cells += [f"{ours.deviation:.0e}", str(ours.collectives), str(ours.bytes)]
        cells += [described(each) for each in others]
        yield f"| {' | '.join(cells)} |"


def described(each: Outcome) -> str:
    """Another package's outcome in a cell."""
    if each.error:
        return each.error
    said = f", {each.collectives} collectives" if each.collectives else ""
    said += "" if each.off_adamw is None else f", {each.off_adamw:.0e} off AdamW"
    return f"{each.verdict} ({each.deviation:.0e}{said})"


def contender_names() -> list[str]:
    """The packages with their versions, where they are installed."""
    return [
        f"{name} {version(distribution)}" if find_spec(name) else name
        for name, distribution in CONTENDERS.items()
    ]


def table() -> str:
    """Return the table in Markdown."""
    names = contender_names()
    head = [
        *("Strategy", "processes", names[0], "max. deviation", "collectives a step"),
        *("bytes a step", *names[1:]),
    ]
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | --- | ---: | ---: | ---: | --- | --- |"]
    made = (
        f"AdamP, {STEPS} steps, float32, gloo, torch {torch.__version__}; made by "
        "`python -m tests.tables.distributed_strategies --write`."
    )
    return "\n".join([*lines, *rows(), "", made])


if __name__ == "__main__":
    print_or_write(table, SECTION, (__doc__ or "").partition("\n")[0])
