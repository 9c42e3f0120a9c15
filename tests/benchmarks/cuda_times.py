"""Time a step on a GPU beside torch's fused operator.

python -m tests.benchmarks.cuda_times              print the tables
python -m tests.benchmarks.cuda_times --output     write them into docs/cuda.md

Host: from the call of `step()` on an idle device to its return. Device: how long it works for a
step that has been handed to it whole, as where the host is ahead. All optimizers of a table step in
turn, with weights and state of their own and the same gradients; a ratio is that of two steps of
one round, and the tables show medians.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_adamp import SGDP, AdamP
from tests.benchmarks import report
from tests.benchmarks.low_precision_cost import (
    MEMBERS,
    SETTINGS,
    STORAGES,
    Member,
    optimizers_of,
)
from tests.benchmarks.rounds import interleave, median_ratio
from tests.benchmarks.shapes import SHAPES
from tests.benchmarks.step_time import REGIMES, make_orthogonal
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "cuda.md", "cuda-times")
MODELS = ("bert-base", "gpt2-medium", "resnet50", "tiny")
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
FUSED, FOREACH, GRAPH = {"fused": True}, {"foreach": True}, {"fused": True, "capturable": True}
# The first of each list is what the others are compared with.
FAMILIES: dict[str, list[tuple[str, type[Optimizer], dict[str, Any]]]] = {
    "adamp": [
        ("torch AdamW, fused", torch.optim.AdamW, {**SETTINGS, **FUSED}),
        ("AdamP, fused", AdamP, {**SETTINGS, **FUSED}),
        ("AdamP, foreach", AdamP, {**SETTINGS, **FOREACH}),
        ("torch AdamW, foreach", torch.optim.AdamW, {**SETTINGS, **FOREACH}),
    ],
    "sgdp": [
        ("torch SGD, fused", torch.optim.SGD, {**SGD, **FUSED}),
        ("SGDP, fused", SGDP, {**SGD, **FUSED}),
        ("SGDP, foreach", SGDP, {**SGD, **FOREACH}),
    ],
}


def draw(name: str, regime: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """A model's weights and their gradients on the device."""
    generator = torch.Generator("cuda").manual_seed(0)
    weights, gradients = [], []
    for shape in SHAPES[name]():
        weight, gradient = (
            torch.randn(shape, generator=generator, device="cuda") * size for size in (0.02, 0.01)
        )
        if regime == "orthogonal":
            make_orthogonal(gradient, weight)
        weights.append(weight.to(dtype))
        gradients.append(gradient.to(dtype))
    return weights, gradients


def device_times(
    actions: Sequence[Callable[[], object]], host: Sequence[Sequence[float]], rounds: int
) -> list[list[float]]:
    """Seconds of the device for each action in each round."""
    times: list[list[float]] = [[] for _ in actions]
    for number in range(rounds):
        for index in [(number + i) % len(actions) for i in range(len(actions))]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            # The device waits, in cycles, until all is handed to it.
            torch.cuda._sleep(int(2e9 * (2 * statistics.median(host[index]) + 1e-4)))
            begin.record()
            actions[index]()
            end.record()
            torch.cuda.synchronize()
            times[index].append(begin.elapsed_time(end) / 1000)
    return times


def graph_of(step: Callable[[], object]) -> Callable[[], None]:
    """A step captured in a CUDA graph: what the device takes, without the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(
    actions: Sequence[Callable[[], object]], rounds: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of each action in each round: the host's and the device's."""
    host = interleave(actions, rounds, settle=torch.cuda.synchronize)
    return host, device_times(actions, host, rounds)


def milliseconds(seconds: Sequence[float]) -> str:
    """Their median."""
    return f"{1000 * statistics.median(seconds):.2f}"


def model_rows(name: str, regime: str, family: str, rounds: int) -> Iterator[str]:
    """One row an optimizer."""
    weights, gradients = draw(name, regime, torch.float32)
    # 5,000 weights one after the other take a third of a second, and show no more than 200 do.
    members = FAMILIES[family][: 2 if name == "tiny" else None]
    optimizers = optimizers_of([member[1:] for member in members], weights, gradients)
    times = measure([optimizer.step for optimizer in optimizers], rounds)
    for index, (label, *_) in enumerate(members):
        cells = [
            text
            for own in times
            for text in (milliseconds(own[index]), f"{median_ratio(own[index], own[0]):.2f}")
        ]
        yield f"| {name} | {regime} | {label} | {' | '.join(cells)} |"


def graph_rows(name: str, rounds: int) -> Iterator[str]:
    """AdamP in a CUDA graph, over torch's fused AdamW in one; one row a regime."""
    for regime in REGIMES:
        weights, gradients = draw(name, regime, torch.float32)
        members: list[Member] = [(cls, {**SETTINGS, **GRAPH}) for cls in (torch.optim.AdamW, AdamP)]
        replays = [graph_of(o.step) for o in optimizers_of(members, weights, gradients)]
        torchs, ours = measure(replays, rounds)[1]
        cells = milliseconds(torchs), milliseconds(ours), f"{median_ratio(ours, torchs):.2f}"
        yield f"| {name} | {regime} | {' | '.join(cells)} |"


def low_precision_rows(rounds: int) -> Iterator[str]:
    """bfloat16 weights of BERT-base in each storage, on the device."""
    ratios = []
    for regime in REGIMES:
        optimizers = optimizers_of(MEMBERS, *draw("bert-base", regime, torch.bfloat16))
        torchs, *ours = measure([o.step for o in optimizers], rounds)[1]
        ratios.append([median_ratio(own, torchs) for own in ours])
    for options, independent, orthogonal in zip(STORAGES, *ratios, strict=True):
        moments = options["state_dtype"] or "float32"
        yield f"| {options['rounding']} | {moments} | {independent:.2f} | {orthogonal:.2f} |"


def first_steps() -> Iterator[str]:
    """Seconds of the first step, in which the kernels are compiled unless they are on disk."""
    for name in MODELS:
        (optimizer,) = optimizers_of(
            [(AdamP, {**SETTINGS, **FUSED})], *draw(name, REGIMES[0], torch.float32)
        )
        begin = time.perf_counter()
        optimizer.step()
        torch.cuda.synchronize()
        yield f"| {name} | {time.perf_counter() - begin:.1f} |"


def table(rounds: int) -> Iterator[str]:
    """All tables of the page."""
    yield "| Model | First step of AdamP, s |"
    yield "|---|---:|"
    yield from first_steps()
    for family in FAMILIES:
        yield ""
        yield "| Model | Gradients | Optimizer | Host, ms | Ratio | Device, ms | Ratio |"
        yield "|---|---|---|---:|---:|---:|---:|"
        for name in MODELS:
            for regime in REGIMES:
                yield from model_rows(name, regime, family, rounds)
    yield ""
    yield "| CUDA graph | Gradients | torch AdamW, ms | AdamP, ms | Ratio |"
    yield "|---|---|---:|---:|---:|"
    for name in MODELS:
        yield from graph_rows(name, rounds)
    yield ""
    yield "| bfloat16 weights | Moments | Gradients independent | orthogonal |"
    yield "|---|---|---:|---:|"
    yield from low_precision_rows(rounds)


def lines(rounds: int) -> Iterator[str]:
    """The page's section."""
    yield from table(rounds)
    yield ""
    triton = version("triton")
    yield f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton}."


def main(arguments: Sequence[str]) -> str:
    """Measure, print and return the page's section."""
    about, name = __doc__.partition("\n")[0], "tests.benchmarks.cuda_times"
    return report.measure_and_write(name, about, SECTION, lines, arguments, rounds=30)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
