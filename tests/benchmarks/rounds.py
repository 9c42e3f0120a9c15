"""Time several actions in one run: each round has all in turn, beginning with another one."""

import time
from collections.abc import Callable, Sequence

__all__ = ["interleave"]


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
