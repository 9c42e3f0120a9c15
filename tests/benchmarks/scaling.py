"""How a step's time grows with the size of a model and with the number of its weights.

python -m tests.benchmarks.scaling                 print the table
python -m tests.benchmarks.scaling --output        write it and its plot into docs
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import Parameter

from hf_adamp import AdamP
from tests.benchmarks import report
from tests.benchmarks.rounds import interleave
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "performance.md", "scaling")
PLOT = DOCS / "step-scaling.png"

# Squares of a million elements; then ten million elements in more and more weights.
SIZES = [[(1024, 1024)] * millions for millions in (1, 4, 16, 64, 128, 512)]
COUNTS = [[(side, side)] * (10_000_000 // side**2) for side in (1024, 256, 64, 32)]


def measure(shapes: list[tuple[int, int]], rounds: int) -> tuple[float, float]:
    """Seconds of a step of fused AdamW and of AdamP, medians of interleaved rounds."""
    weights = [torch.randn(shape) * 0.02 for shape in shapes]
    gradients = [torch.randn_like(weight) * 0.01 for weight in weights]
    optimizers = []
    for make in (lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True), lambda p: AdamP(p, lr=1e-5)):
        parameters = [Parameter(weight.clone()) for weight in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizers.append(make(parameters))
    weights.clear()  # two gigabytes of the largest model
    adamw, adamp = interleave([optimizer.step for optimizer in optimizers], rounds)
    return statistics.median(adamw), statistics.median(adamp)


def plot(panels: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw both times against what grows, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(9, 3.6))
    for axis, (label, points) in zip(axes, panels.items(), strict=True):
        what, adamw, adamp = zip(*points, strict=True)
        axis.plot(what, [1000 * t for t in adamw], "o-", color="0.5", label="AdamW, fused")
        axis.plot(what, [1000 * t for t in adamp], "o-", color="tab:blue", label="AdamP")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="time of a step, ms")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    panels: dict[str, list[tuple[int, float, float]]] = {}

    def table(rounds: int) -> Iterator[str]:
        yield "| weights | elements | AdamW, fused, ms | AdamP, ms | AdamP / AdamW |"
        yield "| ---: | ---: | ---: | ---: | ---: |"
        for label, cases in (("elements", SIZES), ("weights of 10M elements", COUNTS)):
            for shapes in cases:
                elements = sum(rows * columns for rows, columns in shapes)
                adamw, adamp = measure(shapes, rounds)
                what = elements if label == "elements" else len(shapes)
                panels.setdefault(label, []).append((what, adamw, adamp))
                yield (
                    f"| {len(shapes):,} | {elements / 1e6:.0f}M | {1000 * adamw:.1f} "
                    f"| {1000 * adamp:.1f} | **{adamp / adamw:.2f}** |"
                )

    about, name = __doc__.partition("\n")[0], "tests.benchmarks.scaling"
    text, written = report.measure_and_write(name, about, SECTION, table, arguments, rounds=10)
    if written:
        plot(panels, PLOT)
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
