"""What deciding costs a 7B model on 8, 64 and 1,024 GPUs: bytes, time, and share of the step.

A model, not a measurement; docs/distributed.md says what it assumes. The bytes follow from the
shapes and are what the tests count on small networks.
"""

import math
from dataclasses import dataclass

from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "distributed.md", "cost")

FLOAT = 4
PER_WEIGHT, PER_ROW = 6 * FLOAT, 5 * FLOAT  # what `total` returns, what a row's statistics are

# Llama 2 7B: https://arxiv.org/abs/2307.09288; q, k, v, o, gate, up, down; two embeddings.
LAYERS, WIDTH, INNER, WORDS = 32, 4096, 11008, 32000
ELEMENTS = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + 2 * WORDS * WIDTH
WEIGHTS = LAYERS * 7 + 2
ROWS = LAYERS * (5 * WIDTH + 2 * INNER) + 2 * WORDS
# Tensor parallel splits o and down inside their rows, and spreads the rows of all others.
SPLIT_ROWS = LAYERS * 2 * WIDTH
SPREAD_WEIGHTS = WEIGHTS - LAYERS * 2

PER_MACHINE = 8
START = 20e-6  # of a collective: its kernel, and the small ones that fill and read the buffer
HOP = {"inside": 3e-6, "between": 10e-6}  # seconds of latency
SPEED = {"inside": 300e9, "between": 50e9}  # bytes a second and GPU
TOKENS, FLOPS = 8192, 400e12  # of a GPU in a step; in a second
STEP = 6 * ELEMENTS * TOKENS / FLOPS
RANKS = (8, 64, 1024)


@dataclass(frozen=True)
class AllReduce:
    """Of so many bytes, over so many processes a machine and so many machines."""

    bytes: float
    inside: int
    machines: int = 1

    @property
    def seconds(self) -> float:
        ranks = self.inside * self.machines
        if ranks == 1:
            return 0.0
        hops = HOP["inside"] * math.log2(self.inside) + HOP["between"] * math.log2(self.machines)
        speed = SPEED["between" if self.machines > 1 else "inside"]
        return START + 2 * hops + 2 * self.bytes * (ranks - 1) / ranks / speed


def _fsdp2(machines: int) -> list[AllReduce]:
    return [AllReduce(WEIGHTS * PER_WEIGHT, PER_MACHINE, machines)]


def _columns(machines: int) -> list[AllReduce]:
    return [AllReduce(ROWS * PER_ROW, PER_MACHINE, machines)]


def _hsdp(machines: int) -> list[AllReduce]:
    return [AllReduce(WEIGHTS * PER_WEIGHT, PER_MACHINE)]


def _cut_rows(ranks: int) -> int:
    """Rows in which a boundary lies when ZeRO-3 cuts each weight into equal ranges."""
    shapes = [(WIDTH, WIDTH)] * 4 + [(INNER, WIDTH)] * 2 + [(WIDTH, INNER)]
    count = 0
    for rows, columns in shapes * LAYERS + [(WORDS, WIDTH)] * 2:
        part = -(-rows * columns // ranks)
        bounds = (min(rank * part, rows * columns) for rank in range(1, ranks))
        count += len({bound // columns for bound in bounds if bound % columns})
    return count


def _zero3(machines: int) -> list[AllReduce]:
    ranks = PER_MACHINE * machines
    rows = _cut_rows(ranks) * PER_ROW
    sums = [rows] if rows else []
    return [AllReduce(size, PER_MACHINE, machines) for size in (*sums, WEIGHTS * PER_WEIGHT)]


def _tensor_parallel(machines: int) -> list[AllReduce]:
    return [
        AllReduce(SPLIT_ROWS / machines * PER_ROW, PER_MACHINE),
        AllReduce(WEIGHTS * PER_WEIGHT, 1, machines),
        AllReduce(SPREAD_WEIGHTS * PER_WEIGHT, PER_MACHINE),
    ]


STRATEGIES = {
    "FSDP2, Shard(0)": _fsdp2,
    "HSDP, shards inside a machine": _hsdp,
    "tensor parallel inside a machine × FSDP2": _tensor_parallel,
    "FSDP2, all weights Shard(1)": _columns,
    "DeepSpeed ZeRO 3": _zero3,
}


def _cells(name: str, ranks: int) -> str:
    reduced = [each for each in STRATEGIES[name](ranks // PER_MACHINE) if each.seconds]
    seconds = sum(each.seconds for each in reduced)
    size = sum(each.bytes for each in reduced)
    shown = f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.1f} kB"
    return (
        f"| {name} | {ranks:,} | {len(reduced)} | {shown} | {seconds * 1e6:,.0f} µs "
        f"| {100 * seconds / STEP:.3f} % |"
    )


def table() -> str:
    """Return the table in Markdown."""
    head = "| Strategy | GPUs | all-reduces a step | bytes put in | time | of a step |"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [_cells(name, ranks) for name in STRATEGIES for ranks in RANKS]
    made = (
        f"{ELEMENTS / 1e9:.2f}B elements in {WEIGHTS} weights with {ROWS:,} rows; a step of "
        f"{STEP:.2f} s; made by `python -m tests.tables.reduction_cost --write`."
    )
    return "\n".join([*lines, "", made])


if __name__ == "__main__":
    print_or_write(table, SECTION, (__doc__ or "").partition("\n")[0])
