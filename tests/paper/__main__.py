"""The paper's toy problem, its norm growth and its lemmas, run again with this package.

    python -m tests.paper              print the tables; pictures go to runs/paper
    python -m tests.paper --write      write tables and pictures into docs/

All of it runs in float64 on the CPU; nothing is downloaded.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_adamp import SGDP
from tests.pages import DOCS, Section
from tests.paper.growth import Trace, growth_ratio, predicted_squares
from tests.paper.pictures import draw_digits, draw_plane, draw_ratios
from tests.paper.problems import ARMS, MOMENTUM, PLANE, digits, plane

PAGE = DOCS / "paper.md"
FAMILIES = (("SGD", "SGD + momentum", "SGDP"), ("Adam", "AdamP"))
# The lemma's β of each arm; none speaks of Adam's steps, but AdamP's are at right angles, too.
BETAS = {
    "GD": 0.0,
    "GD + momentum": MOMENTUM,
    "momentum + projection (SGDP)": 0.0,
    "SGD": 0.0,
    "SGD + momentum": MOMENTUM,
    "SGDP": 0.0,
    "AdamP": 0.0,
}
RATIOS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def table_of_plane(folder: Path, steps: int) -> str:
    """Run the problem in the plane, draw it, and compare it with the lemmas."""
    traces = {name: plane(arm, steps) for name, arm in PLANE.items()}
    draw_plane(traces, folder / "paper-plane.png", shown=min(60, steps))
    rows = [
        "| Optimizer | loss after 20 steps | norm at the end | growth ratio | off the lemma by |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, trace in traces.items():
        loss = float(trace.losses[min(20, steps - 1)])
        norm = float(trace.squares[-1].sum().sqrt())
        rows.append(f"| {name} | {loss:.4f} | {norm:.3f} | {_ratio(trace)} | {_off(name, trace)} |")
    return "\n".join(rows)


def table_of_ratios(folder: Path, steps: int) -> str:
    """Train in the plane to convergence with several momenta."""
    measured: dict[str, dict[float, float]] = {"SGD": {}, "SGDP": {}}
    for beta in RATIOS:
        for name, optimizer in (("SGD", torch.optim.SGD), ("SGDP", SGDP)):
            trace = plane(lambda w, o=optimizer, b=beta: o(w, lr=0.1, momentum=b), steps)
            measured[name][beta] = growth_ratio(trace)
    limits = {beta / 200: 1 + 2 * (beta / 200) / (1 - beta / 200) for beta in range(193)}
    names = {"SGD": "SGD, measured", "SGDP": "SGDP, measured"}
    draw_ratios(limits, {names[n]: m for n, m in measured.items()}, folder / "paper-ratio.png")
    rows = ["| momentum β | 1 + 2β / (1 − β) | SGD | SGDP |", "|---:|---:|---:|---:|"]
    for beta in RATIOS:
        cells = f"{measured['SGD'][beta]:.6f} | {measured['SGDP'][beta]:.6f}"
        rows.append(f"| {beta} | {1 + 2 * beta / (1 - beta):.6f} | {cells} |")
    return "\n".join(rows)


def table_of_digits(folder: Path, steps: int, seeds: int) -> str:
    """Train the net on digits with every optimizer, and draw norms and effective steps."""
    runs = {name: [digits(arm, steps, s) for s in range(seeds)] for name, arm in ARMS.items()}
    traces = {name: [trace for trace, _ in pairs] for name, pairs in runs.items()}
    draw_digits(traces, FAMILIES, folder / "paper-digits.png")
    rows = [
        "| Optimizer | norm grew by | growth ratio | off the lemma by | last effective step "
        "| test accuracy |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, pairs in runs.items():
        of_name = traces[name]
        grown = [float((t.squares[-1].sum() / t.squares[0].sum()).sqrt() - 1) for t in of_name]
        ratio = statistics.fmean(growth_ratio(t) for t in of_name)
        turn = statistics.fmean(float(t.turns[-1]) for t in of_name)
        rights = [100 * accuracy for _, accuracy in pairs]
        spread = statistics.stdev(rights) if seeds > 1 else 0.0
        rows.append(
            f"| {name} | {statistics.fmean(grown):.1%} | {ratio:.2f} | {_off(name, *of_name)} "
            f"| {turn:.5f} | {statistics.fmean(rights):.2f} ± {spread:.2f} % |"
        )
    return "\n".join(rows)


def _ratio(trace: Trace) -> str:
    return f"{growth_ratio(trace):.6f}"


def _off(name: str, *traces: Trace) -> str:
    """The largest relative distance between `|w|²` and what the lemma makes of the steps."""
    if name not in BETAS:
        return "–"
    distances = [(predicted_squares(t, BETAS[name]) / t.squares - 1).abs().max() for t in traces]
    return f"{max(map(float, distances)):.0e}"


def main(arguments: Sequence[str]) -> dict[str, str]:
    """Run everything; return the sections of the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.paper", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write into docs/")
    parser.add_argument("--pictures", type=Path, default=Path("runs/paper"), help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="steps of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="runs on digits (%(default)s)")
    options = parser.parse_args(arguments)
    folder = DOCS if options.write else options.pictures
    sections = {
        "paper-plane": table_of_plane(folder, options.steps),
        "paper-ratio": table_of_ratios(folder, options.steps),
        "paper-digits": table_of_digits(folder, options.steps, options.seeds),
    }
    for name, text in sections.items():
        print(f"{text}\n")
        if options.write:
            Section(PAGE, name).write(text)
    return sections


if __name__ == "__main__":
    main(sys.argv[1:])
