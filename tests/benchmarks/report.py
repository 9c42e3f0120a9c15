"""The benchmark's results as Markdown and as a plot."""

import argparse
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tests.benchmarks.step_time import Comparison, Result
from tests.pages import Section

__all__ = ["machine", "measure_and_write", "plot", "table"]

_PACKAGES = ("torch", "adamp", "timm", "pytorch_optimizer", "torch_optimizer", "hf-adamp")

_TICKS = (1, 2, 3, 5, 10, 20, 50)


def machine() -> str:
    """Describe processor, threads, load and versions in one paragraph."""
    versions = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}; load average {os.getloadavg()[0]:.1f} at the "
        f"end. Python {platform.python_version()}, {versions}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def table(comparison: Comparison) -> str:
    """Write one row a contender; times are medians with their quartiles."""
    head = (
        "| optimizer | × fused torch | step, ms | extra memory, MiB | max. deviation |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    return "\n".join([head, *(_row(result) for result in comparison.results)])


def _row(result: Result) -> str:
    if result.failure:
        return f"| {result.contender.label} | {_cell(result.failure)} | | | |"
    low, ratio, high = result.quartiles("ratios")
    from_, median, to = (1000 * value for value in result.quartiles("seconds"))
    return (
        f"| {result.contender.label} | **{ratio:.2f}** ({low:.2f}–{high:.2f}) "
        f"| {median:.1f} ({from_:.1f}–{to:.1f}) | {result.extra_bytes / 2**20:.0f} "
        f"| {_deviation(result)} |"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _deviation(result: Result) -> str:
    if not result.contender.same_algorithm:
        return "other algorithm"
    return "no reference" if result.deviation is None else f"{result.deviation:.1e}"


def plot(comparisons: dict[str, Comparison], path: Path) -> None:
    """Draw the ratios, one panel a comparison, on a common logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(comparisons), figsize=(8, 3.2 * len(comparisons)), sharex=True, squeeze=False
    )
    for axes, (title, comparison) in zip(panels[:, 0], comparisons.items(), strict=True):
        results = [result for result in reversed(comparison.results) if not result.failure]
        quartiles = [result.quartiles("ratios") for result in results]
        medians = [median for _, median, _ in quartiles]
        spread = [[m - low for low, m, _ in quartiles], [high - m for _, m, high in quartiles]]
        ours = ["tab:blue" if r.contender.package == "hf_adamp" else "0.6" for r in results]
        axes.barh([r.contender.label for r in results], medians, xerr=spread, color=ours)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=title, xscale="log")
        axes.set_xticks(_TICKS, _TICKS)
        axes.minorticks_off()
    panels[-1, 0].set_xlabel("time of a step, as a multiple of torch's fused operator")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def measure_and_write(
    module: str,
    description: str,
    section: Section,
    lines: Callable[[int], Iterable[str]],
    arguments: Sequence[str],
    *,
    rounds: int,
) -> tuple[str, bool]:
    """Make a page's section of a table's lines, printed as they come: a benchmark's `main`.

    Args:
        module: what is called with `python -m`.
        description: of the command line.
        section: where --output puts it.
        lines: the table, measured in so many rounds.
        arguments: the command line.
        rounds: default of --rounds.

    Returns:
        The section, and whether it was written.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds (%(default)s)")
    parser.add_argument("--output", action="store_true", help=f"write into {section.page.name}")
    options = parser.parse_args(arguments)
    made = []
    for line in lines(options.rounds):
        made.append(line)
        print(line, flush=True)
    command = shlex.join(["python", "-m", module, *arguments])
    text = "\n".join([*made, "", machine(), "", f"Command: `{command}`"])
    if options.output:
        section.write(text)
    return text, options.output
