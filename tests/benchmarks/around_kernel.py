"""What a step in which nothing has changed takes beside the kernel's own work.

python -m tests.benchmarks.around_kernel              print the table
python -m tests.benchmarks.around_kernel --output     write it into docs/performance.md

Weights are small, so that what is left is Python. torch's fused AdamW is timed as a whole. All is
processor time of one thread.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import Parameter

from hf_adamp import AdamP
from hf_adamp.optim.backends.cpu.crew import CREW
from tests.benchmarks import report
from tests.benchmarks.rounds import interleave
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "performance.md", "around-kernel")


def parameters(count: int) -> list[Parameter]:
    """So many weights of 16 × 16 with a gradient."""
    made = [Parameter(torch.randn(16, 16)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.randn(16, 16)
    return made


def measure(count: int, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of AdamP's step, of that in the kernel, and of fused AdamW's step."""
    ours = AdamP(parameters(count), lr=1e-5)
    theirs = torch.optim.AdamW(parameters(count), lr=1e-5, fused=True)
    run, kernel = CREW.run, []

    def timed(*arguments: Any) -> None:
        begin = time.process_time()
        run(*arguments)
        kernel.append(time.process_time() - begin)

    with patch.object(CREW, "run", timed):
        times = interleave([ours.step, theirs.step], rounds, clock=time.process_time)
    step, whole = map(statistics.median, times)
    return 1000 * step, 1000 * statistics.median(kernel[-rounds:]), 1000 * whole


def table(rounds: int) -> Iterator[str]:
    """One row a number of weights."""
    torch.set_num_threads(1)
    yield "| weights | AdamP's step, ms | of it in the kernel | around it | AdamW, fused, ms |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for count in (20, 200, 2000):
        step, kernel, whole = measure(count, rounds)
        yield (f"| {count:,} | {step:.2f} | {kernel:.2f} | **{step - kernel:.2f}** | {whole:.2f} |")


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    about, name = __doc__.partition("\n")[0], "tests.benchmarks.around_kernel"
    return report.measure_and_write(name, about, SECTION, table, arguments, rounds=200)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
