"""Time the optimizer step beside torch's and other packages'.

python -m tests.benchmarks                                  bert-base and resnet50, AdamP
python -m tests.benchmarks --shapes tiny --family sgdp      another choice
python -m tests.benchmarks --shapes tiny --brief            the defaults only
python -m tests.benchmarks --output                         write into docs/performance.md
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks import report
from tests.benchmarks.contenders import FAMILIES
from tests.benchmarks.shapes import SHAPES, Shapes
from tests.benchmarks.step_time import CLOCKS, REGIMES, Comparison, Plan, compare
from tests.pages import DOCS, Section

PAGE = DOCS / "performance.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=["adamp"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["bert-base", "resnet50"])
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--steps", type=int, default=10, help="timed steps (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB to use (%(default)s)")
    parser.add_argument("--brief", action="store_true", help="constructors' defaults only")
    parser.add_argument("--output", action="store_true", help=f"write into {PAGE.name}")
    parser.add_argument("--plot", type=Path, help="write a PNG of the ratios")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up all threads, waiting ones too; it needs --threads 1.")
    if options.steps < 1 or options.warmup < 0 or options.threads < 1:
        parser.error("--steps and --threads must be at least 1, --warmup at least 0.")
    return options


def describe(comparison: Comparison, shapes: Shapes, plan: Plan) -> str:
    """Say what was stepped and what projected."""
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    channel, layer, with_rows = comparison.projected
    batches = f", {comparison.batches} batches" if comparison.batches > 1 else ""
    return (
        f"{len(shapes):,} weights, {elements / 1e6:.1f}M elements, float32; {plan.warmup} + "
        f"{plan.steps} steps{batches}. In one step {channel + layer} of {with_rows} weights with "
        f"rows project ({channel} per row, {layer} as a whole)."
    )


def main(arguments: Sequence[str]) -> str:
    """Measure what was asked for, print it as it comes, and return the page's section."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    parts, comparisons = [], {}
    for family in options.family:
        contenders = FAMILIES[family].brief if options.brief else FAMILIES[family]
        for name in options.shapes:
            shapes = SHAPES[name]()
            for regime in options.regime:
                plan = Plan(regime, options.steps, options.warmup, options.memory, options.clock)
                title = f"{family}, {name}, {regime} gradients"
                comparison = comparisons[title] = compare(contenders, shapes, plan)
                about = describe(comparison, shapes, plan)
                parts.append(f"### {title}\n\n{about}\n\n{report.table(comparison)}")
                print(parts[-1], end="\n\n", flush=True)
    command = shlex.join(["python", "-m", "tests.benchmarks", *arguments])
    parts.append(f"{report.machine()}\n\nCommand: `{command}`")
    print(parts[-1])
    section = "\n\n".join(parts)
    if options.output:
        Section(PAGE, "step-time-brief" if options.brief else "step-time").write(section)
    if options.plot:
        report.plot(comparisons, options.plot)
    return section


if __name__ == "__main__":
    main(sys.argv[1:])
