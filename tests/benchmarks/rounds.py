"""Time several actions in one run: each round has all in turn, beginning with another one."""

import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["interleave", "median_ratio"]


def interleave(
    actions: Sequence[Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds of each action in each round; lists in parallel, without the warm-up.

    What `settle` does after each action is not timed.
    """
    times: list[list[float]] = [[] for _ in actions]
    for number in range(warmup + rounds):
        first = number % len(actions)
        for index in [*range(first, len(actions)), *range(first)]:
            begin = clock()
            actions[index]()
            times[index].append(clock() - begin)
            settle()
    return [own[warmup:] for own in times]


def median_ratio(own: Sequence[float], yardstick: Sequence[float]) -> float:
    """Median of the ratios of two actions of one round."""
    return statistics.median(mine / its for mine, its in zip(own, yardstick, strict=True))
