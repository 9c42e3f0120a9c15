"""A step of bfloat16 weights in each storage, over torch's fused AdamW on bfloat16 weights.

python -m tests.benchmarks.low_precision_cost              print the table
python -m tests.benchmarks.low_precision_cost --output     write it into docs/low-precision.md

torch's AdamW keeps the moments of bfloat16 weights in bfloat16 and rounds to nearest. All is
processor time of one thread; gradients are independent of the weights, or orthogonal to each row.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from hf_adamp import AdamP
from tests.benchmarks import report
from tests.benchmarks.rounds import interleave, median_ratio
from tests.benchmarks.shapes import SHAPES
from tests.benchmarks.step_time import REGIMES, make_orthogonal
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "low-precision.md", "low-precision-cost")
SETTINGS = {"lr": 1e-5, "weight_decay": 0.01}
Member = tuple[type[Optimizer], dict[str, Any]]
STORAGES = [
    {"rounding": rounding, "state_dtype": state}
    for state in (None, "bfloat16")
    for rounding in ("nearest", "stochastic", "kahan")
]


MEMBERS: list[Member] = [
    (torch.optim.AdamW, {**SETTINGS, "fused": True}),
    *((AdamP, {**SETTINGS, **storage}) for storage in STORAGES),
]


def optimizers_of(
    members: Sequence[Member], weights: list[Tensor], gradients: list[Tensor]
) -> list[Optimizer]:
    """Each with weights of its own and the same gradients."""
    made = []
    for optimizer, options in members:
        parameters = [Parameter(weight.clone()) for weight in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        made.append(optimizer(parameters, **options))
    return made


def draw(regime: str) -> tuple[list[Tensor], list[Tensor]]:
    """ResNet-50's weights and their gradients, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES["resnet50"]()
    weights = [torch.randn(shape, generator=generator) * 0.02 for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) * 0.01 for shape in shapes]
    for weight, gradient in zip(weights, gradients, strict=True):
        if regime == "orthogonal":
            make_orthogonal(gradient, weight)
    return [w.bfloat16() for w in weights], [g.bfloat16() for g in gradients]


def table(rounds: int) -> Iterator[str]:
    """One row a storage, one column a regime."""
    torch.set_num_threads(1)
    ratios: list[list[float]] = []
    for regime in REGIMES:
        optimizers = optimizers_of(MEMBERS, *draw(regime))
        steps = [optimizer.step for optimizer in optimizers]
        torchs, *ours = interleave(steps, rounds, clock=time.process_time)
        ratios.append([median_ratio(own, torchs) for own in ours])
    yield "| weights | moments | gradients independent | orthogonal |"
    yield "| --- | --- | ---: | ---: |"
    for options, independent, orthogonal in zip(STORAGES, *ratios, strict=True):
        moments = options["state_dtype"] or "float32"
        yield f"| {options['rounding']} | {moments} | {independent:.2f} | {orthogonal:.2f} |"


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    about, name = __doc__.partition("\n")[0], "tests.benchmarks.low_precision_cost"
    return report.measure_and_write(name, about, SECTION, table, arguments, rounds=15)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
