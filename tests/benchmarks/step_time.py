"""Time of one optimizer step, its extra memory, and how far its weights stray from adamp 0.3.0.

All contenders of a batch take the same gradients in turn, each with weights and state of its own;
a batch holds as many as fit into memory, and always the yardstick (torch's fused operator) and the
reference (adamp 0.3.0). A ratio is that of two steps of the same round, so that a machine whose
speed drifts still gives fair ratios. On a machine that others use too, the clock "cpu" counts the
time this process was computing, which with one thread is what a quiet machine would show.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.contenders import Contender, Family, NotAvailableError
from tests.benchmarks.shapes import Shapes

__all__ = ["CLOCKS", "REGIMES", "Comparison", "Plan", "Result", "compare", "make_orthogonal"]

# independent: almost nothing projects. orthogonal: the gradient of a scale-invariant weight, which
# is orthogonal to it row by row, so that every weight with rows projects.
REGIMES = ("independent", "orthogonal")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# Weight, two moments: what each contender keeps. Gradient and a step's temporaries are extra.
_KEPT_PER_CONTENDER = 3
_SHARED = 4


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    regime: str
    steps: int
    warmup: int = 2
    memory_gib: float = 8.0
    clock: str = "wall"
    seed: int = 0


@dataclass
class Result:
    """What one contender did."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    deviation: float | None = None
    extra_bytes: int = 0
    failure: str | None = None

    def quartiles(self, what: str) -> tuple[float, float, float]:
        """First quartile, median, third quartile of `seconds` or `ratios`."""
        values = getattr(self, what)
        if len(values) == 1:
            return values[0], values[0], values[0]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, middle, high


@dataclass
class Comparison:
    """The results of one family on one list of shapes in one regime."""

    results: list[Result]
    projected: tuple[int, int, int]
    """Weights that project per row and as a whole in one step, and weights with rows."""
    batches: int


class _Runner:
    """A contender with weights of its own."""

    def __init__(self, contender: Contender, family: Family, weights: list[Tensor]):
        self.result = Result(contender)
        self.parameters = [Parameter(weight.clone()) for weight in weights]
        self.optimizer = contender.make(self.parameters, family.settings)

    def step(self, gradients: list[Tensor], clock: str = "wall") -> float:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        begin = CLOCKS[clock]()
        self.optimizer.step()
        return CLOCKS[clock]() - begin

    def measure_memory(self, gradients: list[Tensor]) -> None:
        """Find the highest sum of what torch allocates and frees during a step.

        A process's resident size would not do: it keeps what earlier steps of others took.
        """
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step(gradients)
        level = peak = 0
        events = recorded.profiler.kineto_results.events()
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                level += event.nbytes()
                peak = max(peak, level)
        self.result.extra_bytes = peak


def compare(family: Family, shapes: Shapes, plan: Plan) -> Comparison:
    """Measure every contender of a family, in as many batches as memory asks for."""
    measured: dict[str, Result] = {}
    projected = (0, 0, 0)
    batches = list(_batches(family, shapes, plan.memory_gib))
    for batch in batches:
        always = (family.yardstick, family.reference)
        results, projected = _play((*always, *batch), family, shapes, plan)
        for result in results:
            # The yardstick and the reference run in every batch; all their times count.
            first = measured.setdefault(result.contender.label, result)
            if first is not result:
                first.seconds += result.seconds
                first.ratios += result.ratios
    rows = [measured[contender.label] for contender in family.contenders]
    return Comparison(rows, projected, len(batches))


def _batches(family: Family, shapes: Shapes, memory_gib: float) -> Iterator[tuple[Contender, ...]]:
    """Split the contenders so that weights, state and gradients of a batch fit into memory."""
    model_gib = sum(4 * torch.Size(shape).numel() for shape in shapes) / 2**30
    room = (memory_gib - _SHARED * model_gib) / (_KEPT_PER_CONTENDER * model_gib)
    size = int(room) - 2
    if size < 1:
        needed = (_SHARED + 3 * _KEPT_PER_CONTENDER) * model_gib
        raise SystemExit(
            f"--memory {memory_gib} GiB cannot hold three contenders of {model_gib:.1f} GiB of "
            f"weights each; give at least --memory {needed:.0f}."
        )
    for begin in range(0, len(family.others), size):
        yield family.others[begin : begin + size]


def _play(
    contenders: tuple[Contender, ...], family: Family, shapes: Shapes, plan: Plan
) -> tuple[list[Result], tuple[int, int, int]]:
    """Run one batch: everyone takes each step before anyone takes the next."""
    generator = torch.Generator().manual_seed(plan.seed)
    weights = [_first_weight(shape, generator) for shape in shapes]
    gradients = [torch.zeros_like(weight) for weight in weights]
    runners, results = _start(contenders, family, weights, gradients)
    by_label = {runner.result.contender.label: runner for runner in runners}
    guide = by_label.get(family.reference.label, runners[0])
    for step in range(plan.warmup + plan.steps):
        _fill(gradients, guide.parameters, plan.regime, generator)
        seconds = _round(runners, gradients, step, plan.clock)
        if step >= plan.warmup:
            yardstick = seconds[family.yardstick.label]
            for runner in runners:
                taken = seconds[runner.result.contender.label]
                runner.result.seconds.append(taken)
                runner.result.ratios.append(taken / yardstick)
    if family.reference.label in by_label:
        for runner in runners:
            runner.result.deviation = _deviation(runner.parameters, guide.parameters)
    _fill(gradients, guide.parameters, plan.regime, generator)
    projected = _projected(guide.parameters, gradients)
    for runner in runners:
        runner.measure_memory(gradients)
    return results, projected


def _start(
    contenders: tuple[Contender, ...],
    family: Family,
    weights: list[Tensor],
    zeros: list[Tensor],
) -> tuple[list[_Runner], list[Result]]:
    """Build who can be built; who cannot keeps a row that says why."""
    runners, results = [], []
    for contender in contenders:
        try:
            runner = _Runner(contender, family, weights)
            _make_state(runner, zeros)
        except NotAvailableError as error:
            results.append(Result(contender, failure=str(error)))
        except Exception as error:  # a contender's failure is a result, not an end
            results.append(Result(contender, failure=f"{type(error).__name__}: {error}"))
        else:
            runners.append(runner)
            results.append(runner.result)
    return runners, results


def _make_state(runner: _Runner, zeros: list[Tensor]) -> None:
    """Step with zero gradients, which makes state and moves weights by their decay only."""
    runner.step(zeros)
    if any(gradient.any() for gradient in zeros):
        for gradient in zeros:
            gradient.zero_()
        raise RuntimeError("changes the gradients it is given; the others need them too")


def _round(
    runners: list[_Runner], gradients: list[Tensor], step: int, clock: str
) -> dict[str, float]:
    """Let everyone take the step, with another first one each time."""
    first = step % len(runners)
    order = runners[first:] + runners[:first]
    return {runner.result.contender.label: runner.step(gradients, clock) for runner in order}


def _first_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = torch.ones(shape)
    return weight.normal_(0, 0.02, generator=generator) if weight.ndim > 1 else weight


def _fill(
    gradients: list[Tensor],
    weights: list[Parameter],
    regime: str,
    generator: torch.Generator,
) -> None:
    """Draw new gradients; in the orthogonal regime without what is along the weight's row."""
    for gradient, parameter in zip(gradients, weights, strict=True):
        gradient.normal_(0, 0.01, generator=generator)
        if regime == "orthogonal":
            make_orthogonal(gradient, parameter.detach())


def make_orthogonal(gradient: Tensor, weight: Tensor) -> None:
    """Take from each row of a gradient, in place, what is along the weight's row."""
    if gradient.ndim > 1:
        rows, along = gradient.flatten(1), weight.flatten(1)
        share = torch.linalg.vecdot(rows, along) / torch.linalg.vecdot(along, along)
        rows.addcmul_(share[:, None], along, value=-1)


def _deviation(weights: list[Parameter], reference: list[Parameter]) -> float:
    """Largest difference of any element; NaN where anything is not a number."""
    with torch.no_grad():
        worst = [(w - r).abs().max() for w, r in zip(weights, reference, strict=True)]
    return torch.stack(worst).max().item()


def _projected(
    weights: list[Parameter], gradients: list[Tensor], delta: float = 0.1
) -> tuple[int, int, int]:
    """Count which weights pass the paper's test (Algorithm 1) per row, or else as a whole."""
    channel = layer = with_rows = 0
    for parameter, gradient in zip(weights, gradients, strict=True):
        if parameter.ndim > 1:
            with_rows += 1
            if _is_invariant(parameter.detach().flatten(1), gradient.flatten(1), delta):
                channel += 1
            elif _is_invariant(parameter.detach().view(1, -1), gradient.view(1, -1), delta):
                layer += 1
    return channel, layer, with_rows


def _is_invariant(rows: Tensor, gradient: Tensor, delta: float) -> bool:
    cosines = torch.cosine_similarity(gradient, rows, dim=1).abs()
    return bool(cosines.max() < delta / rows.shape[1] ** 0.5)
