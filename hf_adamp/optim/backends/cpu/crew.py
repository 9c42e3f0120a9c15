"""Threads that help with a step: torch's own, or Python's, which leave the interpreter meanwhile.

The kernel hands out its tasks by one counter (csrc/kernel.c), so any threads can help. Those of
torch's OpenMP runtime are best. After each operation of torch they wait for the next one at full
speed, for some milliseconds, and a step begins right after a backward pass: other threads would
have to share the processors with them. Where torch does not show its runtime, and after a fork,
which the runtime does not survive, there are Python threads, asleep between steps.
"""

from __future__ import annotations

import ctypes
import os
from _thread import LockType, allocate_lock
from threading import Thread
from typing import Any

from .library import Crew as Door
from .library import Problem, parallel

__all__ = ["CREW", "Crew"]

# As in types.h.
_CLOSED, _EXPECTED = -1, -2


class Crew:
    """As many threads as were ever asked for, less the one that asks.

    Args:
        parallel: where the entry is of torch's OpenMP runtime; None for threads of its own.
    """

    def __init__(self, parallel: int | None = None) -> None:
        self._begin(parallel)
        # The threads stay with the parent.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self, parallel: int | None = None) -> None:
        self._door = Door(inside=_CLOSED, parallel=parallel)
        self._bells: list[LockType] = []
        self._is_free = allocate_lock()

    def run(self, library: ctypes.CDLL, function: str, problem: Problem, threads: int) -> None:
        """Call a function of the kernel, with so many threads at work.

        There is one crew in a process: a step in another thread at the same time works alone.
        """
        call = getattr(library, f"hf_adamp_{function}")
        if threads < 2 or not self._is_free.acquire(blocking=False):
            call(problem, None)
            return
        door = self._door
        door.threads = threads
        try:
            if not door.parallel:
                door.inside = _EXPECTED
                self._wake(threads - 1, library.hf_adamp_help)
            call(problem, door)
        finally:
            door.inside = _CLOSED
            self._is_free.release()

    def _wake(self, count: int, help_: Any) -> None:
        while len(self._bells) < count:
            bell = allocate_lock()
            thread = Thread(target=_serve, args=(bell, help_, self._door), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or the system has no more threads
                break
            self._bells.append(bell)
        for bell in self._bells[:count]:
            if bell.locked():
                bell.release()


def _serve(bell: LockType, help_: Any, door: Door) -> None:
    while True:
        bell.acquire()
        help_(door)


CREW = Crew(parallel())
